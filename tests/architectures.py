"""Tiny random classifiers of many architectures, adapters for them, and texts that tell them apart.

Every class is transformers' own, every adapter PEFT's own. The weights are ten times larger than
usual, so that a wrong mask, position or window shows in the scores; and what usually begins at zero
or one (biases, norms, the embedding of padding) does not.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from morlaif_hub.bank.adapters import ADAPTER_WEIGHTS, AdapterFiles, check_adapter

Ids = list[int]

VOCABULARY, BEGIN, END, PAD = 160, 1, 2, 3
LAYERS = 4
WINDOW = 20
"""Tokens: more than an engine's own probe has, fewer than many texts here."""
LONGEST = 60
"""Tokens of the longest text; positions reach further."""
WEIGHT = 0.2

_ALTERNATING = ("sliding_attention", "full_attention") * 2


@dataclass(frozen=True)
class Architecture:
    """A kind of classifier, in small.

    Attributes:
        model_type: As transformers calls it.
        options: Of its configuration, beyond those that all share.
        packed: Whether the engine may put its texts in one row.
        adaptable: Whether the bank takes adapters for it; not if its head is more than one matrix.
        pad: Its padding token.
        attention: The implementation; None for transformers' choice.
    """

    model_type: str
    options: Mapping[str, Any]
    packed: bool = True
    adaptable: bool = True
    pad: int = PAD
    attention: str | None = None


class Parts(NamedTuple):
    """The modules of a kind of model that an adapter may change, by the end of their names.

    What recipes for all architectures do not need is right only where the others are used.

    Attributes:
        attention: Matrices of the attention.
        feed_forward: Matrices after it.
        embeddings: Those of tokens.
        norm: One inside each layer.
        last: What comes between the layers and the head, to be trained whole.
        layered: Whether PEFT can tell its layers apart.
    """

    attention: list[str]
    feed_forward: list[str]
    embeddings: str = "embed_tokens"
    norm: str = "post_attention_layernorm"
    last: str = "model.norm"
    layered: bool = True


_ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 2}
_HEADS = {"head_dim": 8}
_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
_OLD = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 128}
_FALCON = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
_WINDOW = {"sliding_window": WINDOW}
_WINDOW_ABOVE = {**_WINDOW, "use_sliding_window": True, "max_window_layers": 2}
_OPT = {
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_GEMMA = {**_DECODER, **_HEADS, **_WINDOW, "query_pre_attn_scalar": 8}
_MODERN = {
    **_ENCODER,
    "local_attention": 2 * WINDOW,  # to both sides together
    "global_attn_every_n_layers": 2,
    "cls_token_id": BEGIN,
    "sep_token_id": END,
}
_LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": WINDOW}
_MAMBA = {"mamba_d_state": 4, "mamba_dt_rank": 4, "mamba_expand": 1}

ARCHITECTURES: dict[str, Architecture] = {
    # Decoders that are packed.
    "llama": Architecture("llama", _DECODER),
    "llama, eager": Architecture("llama", _DECODER, attention="eager"),
    "llama, padded with its end": Architecture("llama", _DECODER, pad=END),
    "gpt2": Architecture("gpt2", _OLD),
    "gpt_bigcode": Architecture("gpt_bigcode", _OLD),
    "mistral": Architecture("mistral", {**_DECODER, **_WINDOW}),
    "qwen2": Architecture("qwen2", {**_DECODER, **_WINDOW_ABOVE}),
    "qwen3": Architecture("qwen3", {**_DECODER, **_HEADS, **_WINDOW_ABOVE}),
    "gemma": Architecture("gemma", {**_DECODER, **_HEADS}),
    "gemma2": Architecture("gemma2", {**_GEMMA, "attn_logit_softcapping": 5.0}),
    "gemma3": Architecture("gemma3_text", {**_GEMMA, "sliding_window_pattern": 2}),
    "gemma3, both ways": Architecture(
        "gemma3_text",
        {**_GEMMA, "sliding_window_pattern": 2, "use_bidirectional_attention": True},
        packed=False,  # states depend on later tokens, and the last one is read
    ),
    "gpt_neox": Architecture("gpt_neox", _ENCODER),
    "opt": Architecture("opt", _OPT),
    "opt, projected": Architecture(
        "opt", {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    ),
    "phi": Architecture("phi", _DECODER),
    "phi3": Architecture("phi3", {**_DECODER, **_WINDOW}),
    "phi3, long": Architecture(
        "phi3",
        {**_DECODER, "original_max_position_embeddings": 32, "rope_parameters": _LONG_ROPE},
    ),
    "olmo2": Architecture("olmo2", _DECODER),
    "olmo3": Architecture("olmo3", {**_DECODER, **_WINDOW, "layer_types": [*_ALTERNATING]}),
    "smollm3": Architecture(
        "smollm3",
        {
            **_DECODER,
            **_WINDOW,
            "use_sliding_window": True,
            "layer_types": [*_ALTERNATING],
            "no_rope_layers": [1, 1, 0, 1],
        },
    ),
    "exaone4": Architecture("exaone4", {**_DECODER, **_WINDOW, "sliding_window_pattern": 2}),
    "starcoder2": Architecture("starcoder2", {**_DECODER, **_WINDOW}),
    "stablelm": Architecture("stablelm", _DECODER),
    "glm4": Architecture("glm4", {**_DECODER, **_HEADS}),
    "mixtral": Architecture("mixtral", {**_DECODER, **_WINDOW, **_EXPERTS}),
    "gpt_oss": Architecture(
        "gpt_oss", {**_DECODER, **_HEADS, **_WINDOW, **_EXPERTS, "rope_parameters": _YARN}
    ),
    "deepseek_v3": Architecture(
        "deepseek_v3",
        {
            **_ENCODER,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 16,
        },
    ),
    "modernbert_decoder": Architecture("modernbert-decoder", _MODERN),
    # Encoders, which read at the first token.
    "bert": Architecture("bert", _ENCODER),
    "distilbert": Architecture(
        "distilbert",
        {
            "dim": 32,
            "hidden_dim": 48,
            "n_layers": LAYERS,
            "n_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    "modernbert": Architecture("modernbert", _MODERN),
    "roberta": Architecture("roberta", _ENCODER, adaptable=False),
    "electra": Architecture("electra", {**_ENCODER, "embedding_size": 16}, adaptable=False),
    # Read as a mean over the text.
    "modernbert, mean": Architecture(
        "modernbert", {**_MODERN, "classifier_pooling": "mean"}, packed=False
    ),
    "eurobert": Architecture(
        "eurobert", {**_DECODER, "mask_token_id": 4, "classifier_pooling": "late"}, packed=False
    ),
    # Attention of their own, or called in another way than once in each layer.
    "falcon": Architecture("falcon", {**_FALCON, "alibi": False}, packed=False),
    "falcon, alibi": Architecture("falcon", {**_FALCON, "alibi": True}, packed=False),
    "bloom": Architecture("bloom", {**_OLD, "hidden_size": 32}, packed=False),
    "mpt": Architecture(
        "mpt",
        {"d_model": 32, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": 128, "expansion_ratio": 2},
        packed=False,
    ),
    "gpt_neo": Architecture(
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": LAYERS,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": WINDOW,
            "max_position_embeddings": 128,
            "intermediate_size": 48,
        },
        packed=False,
    ),
    "gptj": Architecture("gptj", {**_OLD, "rotary_dim": 4}, packed=False),
    "doge": Architecture("doge", {**_DECODER, **_WINDOW, "keep_window_size": WINDOW}, packed=False),
    "diffllama": Architecture("diffllama", _DECODER, packed=False),
    "mpnet": Architecture("mpnet", _ENCODER, packed=False, adaptable=False),
    "deberta": Architecture(
        "deberta", {**_ENCODER, **_RELATIVE, "max_relative_positions": 16}, packed=False
    ),
    "deberta_v2": Architecture(
        "deberta-v2",
        {**_ENCODER, **_RELATIVE, "share_att_key": True, "position_biased_input": False},
        packed=False,
    ),
    "albert": Architecture("albert", {**_ENCODER, "embedding_size": 16}, packed=False),
    # More than attention goes from token to token.
    "jamba": Architecture(
        "jamba",
        {
            **_DECODER,
            **_MAMBA,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
        packed=False,
    ),
    "zamba2": Architecture(
        "zamba2",
        {
            **_DECODER,
            "mamba_d_state": 8,
            "mamba_headdim": 8,
            "mamba_ngroups": 1,
            "n_mamba_heads": 8,
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "chunk_size": 16,
            "num_mem_blocks": 1,
            "attention_head_dim": 16,
        },
        packed=False,
    ),
    "qwen3_next": Architecture(
        "qwen3_next",
        {
            **_DECODER,
            **_HEADS,
            **_LINEAR,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
        packed=False,
    ),
    "minimax": Architecture(
        "minimax",
        {**_DECODER, **_EXPERTS, "layer_types": _LINEAR["layer_types"], "block_size": 16},
        packed=False,
    ),
    "mobilebert": Architecture(
        "mobilebert",
        {
            **_ENCODER,
            "embedding_size": 32,
            "intra_bottleneck_size": 32,
            "true_hidden_size": 32,
            "normalization_type": "layer_norm",
        },
        packed=False,
    ),
    # Padding on the right changes their scores, so they need texts of one length.
    "fnet": Architecture("fnet", _ENCODER, packed=False),
    "convbert": Architecture(
        "convbert", {**_ENCODER, "embedding_size": 32}, packed=False, adaptable=False
    ),
    "xlnet": Architecture(
        "xlnet", {"d_model": 32, "n_layer": LAYERS, "n_head": 4, "d_inner": 48},
        packed=False, adaptable=False,
    ),
}  # fmt: skip

_LLAMA = Parts(["q_proj", "v_proj"], ["gate_proj", "down_proj"])
_FUSED = Parts(
    ["query_key_value"],
    ["dense_h_to_4h", "dense_4h_to_h"],
    embeddings="word_embeddings",
    norm="input_layernorm",
    last="ln_f",
)
_BERT = Parts(
    ["query", "value"],
    ["intermediate.dense", "output.dense"],
    embeddings="word_embeddings",
    norm="output.LayerNorm",
    last="pooler",
)
_MODERNBERT = Parts(["Wqkv"], ["Wi", "Wo"], "tok_embeddings", "mlp_norm", "final_norm")
_GPT2 = Parts(["c_attn"], ["c_fc", "mlp.c_proj"], "wte", "ln_2", "ln_f")
_EXPERTS_PARTS = _LLAMA._replace(feed_forward=["k_proj", "o_proj"])

PARTS: dict[str, Parts] = {
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neox": _FUSED._replace(embeddings="embed_in", last="gpt_neox.final_layer_norm"),
    "opt": Parts(["q_proj", "v_proj"], ["fc1", "fc2"]),
    "phi": Parts(["q_proj", "v_proj"], ["fc1", "fc2"]),
    "phi3": Parts(["qkv_proj"], ["gate_up_proj", "down_proj"]),
    "starcoder2": Parts(["q_proj", "v_proj"], ["c_fc", "c_proj"]),
    "glm4": Parts(["q_proj", "v_proj"], ["gate_up_proj", "down_proj"]),
    "mixtral": _EXPERTS_PARTS,
    "gpt_oss": _EXPERTS_PARTS,
    "deepseek_v3": Parts(["q_b_proj", "kv_b_proj"], ["q_a_proj", "o_proj"]),
    "modernbert-decoder": _MODERNBERT._replace(attention=["q_proj", "v_proj"]),
    "bert": _BERT,
    "distilbert": Parts(["q_lin", "v_lin"], ["lin1", "lin2"]),
    "modernbert": _MODERNBERT,
    "falcon": _FUSED,
    "bloom": _FUSED,
    "mpt": Parts(["Wqkv"], ["up_proj", "down_proj"]),
    "gpt_neo": Parts(["q_proj", "v_proj"], ["c_fc", "c_proj"]),
    "gptj": Parts(["q_proj", "v_proj"], ["fc_in", "fc_out"]),
    "deberta": Parts(["in_proj"], ["intermediate.dense", "output.dense"]),
    "deberta-v2": Parts(["query_proj", "value_proj"], ["intermediate.dense", "output.dense"]),
    "albert": Parts(["query", "value"], ["ffn", "ffn_output"], layered=False),
    "jamba": Parts(["q_proj", "v_proj", "in_proj"], ["o_proj", "out_proj"]),
    "zamba2": Parts(["in_proj"], ["out_proj"]),
    "qwen3_next": Parts(["q_proj", "v_proj", "in_proj_qkvz"], ["o_proj", "out_proj"]),
    "minimax": Parts(["q_proj", "v_proj", "qkv_proj"], ["o_proj", "out_proj"]),
    "mobilebert": Parts(["query", "value"], ["intermediate.dense", "output.dense"]),
    "fnet": Parts(["intermediate.dense"], ["output.dense"]),
}


class Adaptation(NamedTuple):
    """What one adapter changes.

    Attributes:
        parts: Names of `Parts` whose modules get LoRA.
        layers: Those with LoRA; None for all.
        options: Of PEFT's configuration.
        trained: Names of `Parts` that are saved whole.
        trained_in: The layer whose norm that is.
        patterns: Whether the first module has a rank and an alpha of its own.
        also: Further modules with LoRA.
    """

    parts: tuple[str, ...] = ("attention",)
    layers: list[int] | None = None
    options: Mapping[str, Any] = MappingProxyType({"r": 2})
    trained: tuple[str, ...] = ()
    trained_in: int = 1
    patterns: bool = False
    also: tuple[str, ...] = ()


_TOP = Adaptation(layers=[LAYERS - 1])
_EVERYTHING = ("attention", "feed_forward")

RECIPES: dict[str, tuple[Adaptation, ...]] = {
    "no adapter": (),
    "everywhere": (Adaptation(parts=_EVERYTHING),),
    "top quarter": (_TOP, _TOP),
    # The first begins above the others, the second leaves a layer out, and no two are alike.
    "mixed": (
        _TOP,
        Adaptation(parts=("feed_forward",), layers=[1, 3], options={"r": 5, "lora_alpha": 8}),
        Adaptation(parts=_EVERYTHING, layers=[2, 3], options={"r": 1, "lora_alpha": 3}),
    ),
    "all linear": (Adaptation(options={"r": 2, "target_modules": "all-linear"}),),
    "from the first layer": (Adaptation(layers=[0]), Adaptation(layers=[0, 1]), _TOP),
}
"""Plain LoRA, and none."""

PITFALLS: dict[str, tuple[Adaptation, ...]] = {
    "rank-stabilized": (_TOP, Adaptation(options={"r": 3, "use_rslora": True})),
    "dora": (_TOP, Adaptation(parts=_EVERYTHING, options={"r": 2, "use_dora": True})),
    "lora bias": (_TOP, Adaptation(layers=[2, 3], options={"r": 2, "lora_bias": True})),
    "patterns": (_TOP, Adaptation(parts=_EVERYTHING, patterns=True)),
    "trained norm": (_TOP, _TOP._replace(trained=("norm",))),
    "trained last": (_TOP, _TOP._replace(trained=("last",))),
    "trained embeddings": (_TOP, _TOP._replace(trained=("embeddings",))),
    "adapted embeddings": (_TOP, Adaptation(parts=("attention", "embeddings"))),
    "pooler": (_TOP, _TOP._replace(also=("pooler.dense",))),
    "all kinds": (
        Adaptation(layers=[1, 2], options={"r": 2, "use_dora": True}),
        Adaptation(),
        Adaptation(layers=[1, 3], options={"r": 2, "lora_bias": True}, trained=("norm",)),
        Adaptation(parts=("feed_forward",), layers=[0], options={"r": 2, "use_rslora": True}),
    ),
}
"""Where `W + BA` is not the whole adapter; a plain one beside it has to stay as it was."""


def tiny_classifier(name: str, *, seed: int = 0) -> PreTrainedModel:
    """Return a random float32 classifier with one output, in evaluation mode.

    Args:
        name: Of an architecture.
        seed: Of its weights; the global random state is left alone.
    """
    kind = ARCHITECTURES[name]
    config = AutoConfig.for_model(
        kind.model_type,
        vocab_size=VOCABULARY,
        initializer_range=WEIGHT,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=kind.pad,
        num_labels=1,
        **kind.options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
            config, attn_implementation=kind.attention
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=WEIGHT)
            for module in model.modules():
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    module.weight[module.padding_idx].normal_(std=WEIGHT)
    return model.eval()


def adapters(
    model: PreTrainedModel, folder: Path, recipe: Sequence[Adaptation]
) -> dict[str, AdapterFiles]:
    """Write random adapters for a model as PEFT does, and return them as the bank reads them.

    Args:
        model: The base; it is not changed.
        folder: Gets one folder for each.
        recipe: What each of them changes.
    """
    found = {}
    for i, adaptation in enumerate(recipe):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(100 + i)
            with _quiet():
                adapted = get_peft_model(copy.deepcopy(model), _config(model, adaptation))
            with torch.no_grad():
                for parameter in adapted.parameters():
                    if parameter.requires_grad:  # the head and what else is trained whole as well
                        parameter.add_(torch.randn_like(parameter), alpha=WEIGHT)
        _write(adapted, folder / f"pm{i}")
        found[f"objective {i}"] = check_adapter(folder / f"pm{i}", f"pm{i}")
    return found


def _write(adapted: PeftModel, folder: Path) -> None:
    """Write an adapter as PEFT's `save_pretrained` does, without the card, which takes longer."""
    config = adapted.peft_config["default"]
    config.base_model_name_or_path = None
    config.save_pretrained(folder)
    with _quiet():
        weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    save_file({name: w.contiguous() for name, w in weights.items()}, folder / ADAPTER_WEIGHTS)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence PEFT, which warns that an adapter with a bias could not be merged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _config(model: PreTrainedModel, adaptation: Adaptation) -> LoraConfig:
    parts = PARTS.get(model.config.model_type, _LLAMA)
    targets = [*adaptation.also]
    for name in adaptation.parts:
        part = getattr(parts, name)
        targets += [part] if isinstance(part, str) else part
    trained = [getattr(parts, name) for name in adaptation.trained]
    if "norm" in adaptation.trained:
        trained = [
            f".{adaptation.trained_in}.{parts.norm}" if n == parts.norm else n for n in trained
        ]
    options: dict[str, Any] = {"target_modules": targets, **adaptation.options}
    if adaptation.patterns:
        options |= {"rank_pattern": {targets[0]: 5}, "alpha_pattern": {targets[0]: 3}}
    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        layers_to_transform=adaptation.layers if parts.layered else None,
        modules_to_save=trained or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        **options,
    )


def plain(model: PreTrainedModel, files: AdapterFiles | None = None) -> Any:
    """Return a copy of a model, with an adapter on it as PEFT loads it."""
    copied = copy.deepcopy(model)
    if files is None:
        return copied
    with _quiet():
        return PeftModel.from_pretrained(copied, files.folder).eval()


@torch.inference_mode()
def scores_alone(model: Any, texts: Sequence[Ids]) -> Tensor:
    """Return the score of each text, run by itself and without padding, shape (texts,)."""
    rows = [torch.tensor([text]) for text in texts]
    return torch.stack(
        [model(input_ids=r, attention_mask=torch.ones_like(r)).logits[0, 0] for r in rows]
    )


def some_texts(pad: int) -> list[Ids]:
    """Return texts of 1 to 60 tokens, not sorted, that have in common what texts can have."""
    generator = torch.Generator().manual_seed(0)

    def some(length: int) -> Ids:
        return _some(length, generator)

    prompt, other, short = some(20), some(33), some(5)
    again = other + some(9)
    return [
        prompt + some(LONGEST - len(prompt)),
        some(1),
        again,
        [*prompt, *some(2), END],
        prompt,  # a prefix of other texts
        other[:12] + some(18),
        prompt + some(25),
        short,
        short[:4] + some(1),  # less in common than is worth sharing
        [*again],
        [*some(28), pad, pad, pad],
        [pad] * 4,
        [*prompt[:10], pad, *some(15)],
        [*other, END, pad],
    ]


def random_texts(pad: int, *, seed: int, number: int = 10) -> list[Ids]:
    """Return texts that begin as others do, some of which end in padding or an end.

    Args:
        pad: The padding token.
        seed: Of everything.
        number: Of texts.
    """
    generator = torch.Generator().manual_seed(seed)

    def below(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    texts: list[Ids] = [[]]
    while len(texts) <= number:
        known = texts[below(len(texts))]
        text = known[: below(len(known) + 1)] + _some(below(LONGEST // 2), generator)
        text += [[], [], [END], [pad], [END, pad]][below(5)]
        texts.append(text[:LONGEST] or [END])
    return texts[1:]


def _some(length: int, generator: torch.Generator) -> Ids:
    ids: Ids = torch.randint(PAD + 2, VOCABULARY, (length,), generator=generator).tolist()
    return ids
