#!/bin/sh
# All weights of a policy that is too large for one GPU, in shards over eight.
set -e
accelerate launch --config_file examples/accelerate/fsdp.yaml -m morlaif_hub train-policy \
    --algorithm grpo --form full --prompts-per-step 64 --completions 8 --batch-size 8 \
    --max-steps 200 --max-kl 0.2 --check-every 10 --max-new-tokens 128
