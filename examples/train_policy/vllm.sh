#!/bin/sh
# vLLM samples on one GPU while another one trains. The server has to have the model that is trained.
set -e
model=${1:?give the model, a folder or a repo id}
CUDA_VISIBLE_DEVICES=1 trl vllm-serve --model "$model" --port 8000 &
server=$!
trap 'kill $server' EXIT
CUDA_VISIBLE_DEVICES=0 accelerate launch --config_file examples/accelerate/one_gpu.yaml \
    -m morlaif_hub train-policy --model "$model" --algorithm grpo --use-vllm http://localhost:8000 \
    --max-steps 200 --max-kl 0.2 --check-every 10 --max-new-tokens 128
