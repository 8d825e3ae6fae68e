#!/bin/sh
# A policy on one GPU, by each algorithm, stopped before it has moved far.
set -e
for algorithm in grpo rloo online-dpo ppo; do
    accelerate launch --config_file examples/accelerate/one_gpu.yaml -m morlaif_hub train-policy \
        --algorithm "$algorithm" --name "$algorithm" --max-steps 200 --max-kl 0.2 --check-every 10 \
        --max-new-tokens 128 --judge local:embedded
done
