"""Several preference models that score together, over one shared trunk."""
