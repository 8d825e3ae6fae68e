"""Tiny language models with random weights, built in memory: seeded, offline, well under a second.

They say nothing sensible. They are for tests of plumbing, where sizes are small and runs repeat.
"""

from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

Kind = Literal["llama", "gpt2"]
AnyKind = Literal["llama", "gpt2", "bert"]

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CONTEXT = 512

# ChatML. The `generation` block marks the assistant's tokens, as TRL's assistant-only loss needs.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Words that get tokens of their own (a leading space is Ġ in byte-level BPE), so that tokens are
# not simply bytes: where two texts are joined, tokens can merge across the seam as in real models.
WORDS = ("Ġthe", "Ġa", "Ġis", "Ġand", "Ġyou", "Ġto", "Ġof", "ing", "system", "user", "assistant")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer: any text round-trips; ChatML; padding differs from EOS."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = {(word[:i], word[i]): None for word in WORDS for i in range(1, len(word))}
    tokens = [*letters, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def tiny_causal_lm(kind: Kind = "llama", *, layers: int = 2, seed: int = 0) -> PreTrainedModel:
    """Return a random float32 model for `tiny_tokenizer`, in evaluation mode.

    The global random state is left alone. Weights are ten times larger than usual: with the usual
    ones a tiny model hardly sees its input, and a wrong mask or position would pass a test.
    """
    tokenizer = tiny_tokenizer()
    shared = {
        "vocab_size": len(tokenizer),
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel
        if kind == "gpt2":
            model = GPT2LMHeadModel(
                GPT2Config(n_embd=32, n_layer=layers, n_head=4, n_positions=CONTEXT, **shared)
            )
        else:
            model = LlamaForCausalLM(
                LlamaConfig(
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=layers,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    max_position_embeddings=CONTEXT,
                    tie_word_embeddings=True,
                    **shared,
                )
            )
    return model.eval()


def tiny_windowed(*, vocabulary: int = 300) -> PreTrainedModel:
    """Return a random model whose attention sees eight tokens at most."""
    config = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = MistralForCausalLM(config).eval()
    return model


def tiny_encoder(*, layers: int = 2, seed: int = 0) -> PreTrainedModel:
    """Return a random BERT for `tiny_tokenizer`, which reads a text from both sides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            initializer_range=0.2,
            pad_token_id=tokenizer.pad_token_id,
        )
        return BertModel(config).eval()


def save_tiny(folder: Path, kind: AnyKind = "llama", *, layers: int = 2, seed: int = 0) -> Path:
    """Save a tiny model and its tokenizer as `from_pretrained` reads them; return the folder."""
    if kind == "bert":
        model = tiny_encoder(layers=layers, seed=seed)
    else:
        model = tiny_causal_lm(kind, layers=layers, seed=seed)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return Path(folder)
