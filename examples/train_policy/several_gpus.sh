#!/bin/sh
# The same on eight GPUs: a step's completions are shared, and one process speaks and writes.
set -e
accelerate launch --config_file examples/accelerate/ddp.yaml -m morlaif_hub train-policy \
    --algorithm grpo --aggregation normalize_then_sum --prompts-per-step 64 --completions 8 \
    --max-steps 200 --max-kl 0.2 --check-every 10 --max-new-tokens 128
