"""Language models: where they come from, how text becomes tokens, sampling and likelihoods."""
