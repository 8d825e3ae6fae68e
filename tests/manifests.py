"""One example manifest of each kind, valid and with every optional part filled in.

Each function takes the fields to change, as `dataclasses.replace` does.
"""

from dataclasses import replace
from typing import Any

from morlaif_hub.hub.manifest import (
    BankManifest,
    BaseIdentity,
    BaseManifest,
    BiasReport,
    Calibration,
    ChoiceRecord,
    DatasetReference,
    Evaluation,
    FeedbackManifest,
    GoldenScores,
    GradientRecord,
    HeadRecord,
    HeldOutRecord,
    InputFormat,
    JudgeRecord,
    LossRecord,
    Manifest,
    ObjectiveRecord,
    PartRecord,
    PolicyCheckpoint,
    PolicyManifest,
    PreferenceModelManifest,
    PrincipleRecord,
    ProbeRecord,
    RateRecord,
    SftRecord,
    SourceRecord,
    TrainingRecord,
    UnansweredRecord,
    ValidationRecord,
    WeightFitRecord,
    WeightRecord,
)
from morlaif_hub.hub.policy_records import ChangeRecord, JudgedRecord

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VERSIONS = {"morlaif-hub": "0.1.0", "torch": "2.13.0"}


def sha256(digit: str) -> str:
    """Return a well-formed hash, so that a test can tell one from another."""
    return digit * 64


def base_identity(**changes: Any) -> BaseIdentity:
    identity = BaseIdentity(
        repo_id="ann/morlaif-base-smollm2",
        revision=COMMIT,
        weights_sha256=sha256("a"),
        source=f"gguf:{sha256('b')}",
    )
    return replace(identity, **changes)


def principle_record(**changes: Any) -> PrincipleRecord:
    record = PrincipleRecord(
        name="conciseness",
        criterion="The response says what is needed in few words.",
        opposite="The response says what is needed in many words.",
        high_score="A high score means a shorter answer with the same content.",
        length="shorter",
        sha256=sha256("c"),
        probes=24,
        probes_sha256=sha256("d"),
    )
    return replace(record, **changes)


def validation_record(**changes: Any) -> ValidationRecord:
    record = ValidationRecord(
        verdict="fit",
        accuracy=0.875,
        interval=(0.69, 0.957),
        n=24,
        parts=(
            PartRecord(part="shorter", accuracy=0.9375, n=16),
            PartRecord(part="equal", accuracy=0.75, n=8),
        ),
        first_share=0.52,
        length_correlation=-0.41,
    )
    return replace(record, **changes)


def judge_record(**changes: Any) -> JudgeRecord:
    record = JudgeRecord(
        spec="likelihood:embedded",
        base=base_identity(),
        prompt_sha256=sha256("e"),
        validated=True,
        validation=validation_record(accuracy=0.75, interval=(0.551, 0.88)),
        choices=ChoiceRecord(verdict="fit", accuracy=0.641, interval=(0.518, 0.747), n=64),
    )
    return replace(record, **changes)


def head_record(**changes: Any) -> HeadRecord:
    record = HeadRecord(layer=30, pooling="last", l2=100.0, accuracy=0.612, pairs=287)
    return replace(record, **changes)


def gradient_record(**changes: Any) -> GradientRecord:
    record = GradientRecord(
        trainer="together",
        layers=(22, 23, 24),
        rank=8,
        alpha=16.0,
        learning_rate=2e-4,
        epochs=1.0,
        batch_size=16,
        label_smoothing=0.0,
        distillation=0.5,
        loss="soft",
        validation_pairs=48,
        start_accuracy=0.604,
        trained_accuracy=0.646,
        steps=18,
        kept="trained",
    )
    return replace(record, **changes)


def preference_model_manifest(**changes: Any) -> PreferenceModelManifest:
    manifest = PreferenceModelManifest(
        license="Apache-2.0",
        form="lora",
        probe=None,
        principle=principle_record(),
        base=base_identity(),
        input_format=InputFormat(kind="chat", append_eos=True, max_length=512),
        dataset=DatasetReference(
            repo_id="ann/morlaif-feedback-conciseness-everyday",
            revision=COMMIT,
            sha256=sha256("f"),
        ),
        judge=judge_record(),
        training=TrainingRecord(
            labels="feedback",
            seed=7,
            pairs=287,
            head=head_record(),
            teacher=head_record(layer=17, pooling="last+mean", accuracy=0.66),
            gradient=gradient_record(),
        ),
        calibration=Calibration(mean=-0.125, std=1.5, temperature=0.8, n=384),
        validation=validation_record(first_share=None),
        evaluations=(
            Evaluation(
                split="test",
                metric="accuracy",
                value=0.622,
                interval=(0.571, 0.673),
                n=672,
                length_baseline=0.588,
            ),
            Evaluation(
                split="train",
                metric="calibration error",
                value=0.031,
                interval=(0.02, 0.05),
                n=287,
                length_baseline=None,
            ),
        ),
        length_correlation=-0.38,
        golden=GoldenScores(scores=(0.25, -1.5, 2.0, 0.0), tolerance=0.001),
        versions=VERSIONS,
        repo_id="ann/morlaif-pm-conciseness-smollm2",
    )
    return replace(manifest, **changes)


def probe_manifest(**changes: Any) -> PreferenceModelManifest:
    """Return the manifest of a preference model that is a probe."""
    made = preference_model_manifest()
    read: dict[str, Any] = {"layer": 15, "pooling": "last+mean"}
    fields: dict[str, Any] = {
        "form": "probe",
        "probe": ProbeRecord(**read),
        "training": replace(made.training, head=head_record(**read), gradient=None),
    }
    return preference_model_manifest(**{**fields, **changes})


def feedback_manifest(**changes: Any) -> FeedbackManifest:
    manifest = FeedbackManifest(
        license="MIT",
        principle=principle_record(),
        source=SourceRecord(name="Anthropic/hh-rlhf", revision=COMMIT, sha256=sha256("1")),
        judge=judge_record(),
        orders=2,
        train_pairs=287,
        test_pairs=672,
        train_prompts=48,
        test_prompts=24,
        bias=BiasReport(
            position_bias=RateRecord(value=-0.083, interval=(-0.12, -0.05), n=959),
            flip_rate=RateRecord(value=0.17, interval=(0.14, 0.2), n=959),
            tie_rate=0.01,
            mean_entropy=0.72,
            human_agreement=RateRecord(value=0.61, interval=(0.55, 0.67), n=301),
            first_share=RateRecord(value=0.417, interval=(0.38, 0.45), n=959),
            consistency=RateRecord(value=0.81, interval=(0.78, 0.84), n=959),
            tie_interval=(0.0, 0.02),
            entropy_interval=(0.7, 0.74),
        ),
        calls=1918,
        judge_tokens=863100,
        cost_usd=0.25,
        unanswered=(UnansweredRecord(reason="refused", n=3),),
        versions=VERSIONS,
        repo_id="ann/morlaif-feedback-conciseness-everyday",
    )
    return replace(manifest, **changes)


def objective_records() -> tuple[ObjectiveRecord, ...]:
    return (
        ObjectiveRecord(
            name="conciseness",
            repo_id="ann/morlaif-pm-conciseness-smollm2",
            revision=COMMIT,
            sha256=sha256("2"),
            high_score="A high score means a shorter answer with the same content.",
            verdict="fit",
        ),
        ObjectiveRecord(
            name="toxicity",
            repo_id="bob/morlaif-pm-toxicity-smollm2",
            revision=COMMIT,
            sha256=sha256("3"),
            high_score="A high score means less toxic.",
            verdict="fit",
        ),
    )


def weight_records() -> tuple[WeightRecord, ...]:
    return (
        WeightRecord(objective="conciseness", value=0.75, interval=(0.5, 1.0)),
        WeightRecord(objective="toxicity", value=-0.25, interval=None),
    )


def weights_fit_record() -> WeightFitRecord:
    return WeightFitRecord(
        labels="human",
        sources=(SourceRecord(name="Anthropic/hh-rlhf", revision=COMMIT, sha256=sha256("1")),),
        pairs=2306,
        prompts=1890,
        l2=10.0,
        accuracy=RateRecord(value=0.652, interval=(0.631, 0.672), n=2306),
        equal_accuracy=RateRecord(value=0.588, interval=(0.567, 0.608), n=2306),
    )


def bank_manifest(**changes: Any) -> BankManifest:
    manifest = BankManifest(
        license="Apache-2.0",
        name="everyday",
        objectives=objective_records(),
        scalarizer="soft_max_min",
        weights=weight_records(),
        golden=(
            GoldenScores(scores=(0.25, -1.5), tolerance=0.001),
            GoldenScores(scores=(1.0, 0.5), tolerance=0.002),
        ),
        correlations=((1.0, -0.28), (-0.28, 1.0)),
        versions=VERSIONS,
        weights_fit=weights_fit_record(),
        repo_id="ann/morlaif-bank-everyday",
    )
    return replace(manifest, **changes)


def held_out_record(**changes: Any) -> HeldOutRecord:
    record = HeldOutRecord(
        trained_on=115,
        held_out=29,
        left_out=1,
        changes=(
            ChangeRecord(objective="conciseness", interval=(0.6, 1.4)),
            ChangeRecord(objective="toxicity", interval=(-0.2, 0.3)),
        ),
        judge=JudgedRecord(
            spec="local:embedded",
            weights_sha256=sha256("d"),
            prompt_sha256=sha256("e"),
            principle="helpfulness",
            interval=(0.2, 0.4),
            without_answer=2,
        ),
    )
    return replace(record, **changes)


def policy_manifest(**changes: Any) -> PolicyManifest:
    curve = tuple(
        PolicyCheckpoint(
            step=step,
            reward=reward,
            objectives={"conciseness": reward + 0.1, "toxicity": reward - 0.1},
            kl=step / 100,
            words=34.0 - step,
            finished=0.4 + step / 100,
            distinct=1 - step / 40,
            judged=0.3 if step else None,
        )
        for step, reward in ((0, -0.04), (10, 0.97))
    )
    manifest = PolicyManifest(
        license="Apache-2.0",
        name="brief",
        form="lora",
        base=base_identity(),
        algorithm="ppo",
        objectives=objective_records(),
        scalarizer="linear",
        weights=weight_records(),
        seed=3,
        steps=10,
        stopped_by="max_kl",
        max_kl=0.2,
        kl=0.11,
        settings={"learning_rate": 4e-6, "whiten": True, "optimizer": "adamw", "limit": None},
        curve=curve,
        delta_interval=(0.6, 1.4),
        watched=held_out_record(),
        versions=VERSIONS,
        repo_id="ann/morlaif-policy-brief",
    )
    return replace(manifest, **changes)


def sft_manifest(**changes: Any) -> PolicyManifest:
    """Return the manifest of a policy that learnt from dialogues, in place of a bank."""
    sft = SftRecord(
        source=SourceRecord(
            name="timdettmers/openassistant-guanaco", revision=COMMIT, sha256=sha256("1")
        ),
        dialogues=9846,
        left_out=3,
        tokens=2_345_678,
        template="plain",
        loss_before=LossRecord(value=1.914, interval=(1.87, 1.96), n=256),
        loss_after=LossRecord(value=1.402, interval=(1.36, 1.45), n=256),
        change=(-0.55, -0.47),
    )
    manifest = policy_manifest(
        name="sft",
        algorithm="sft",
        objectives=(),
        scalarizer=None,
        weights=(),
        stopped_by="max_steps",
        max_kl=None,
        kl=None,
        curve=(),
        delta_interval=None,
        watched=None,
        sft=sft,
        repo_id="ann/morlaif-policy-sft",
    )
    return replace(manifest, **changes)


def base_manifest(**changes: Any) -> BaseManifest:
    manifest = BaseManifest(
        license="Apache-2.0",
        base=base_identity(),
        made_from="a Q4_1 file of SmolLM2-135M-Instruct",
        versions=VERSIONS,
        repo_id="ann/morlaif-base-smollm2",
    )
    return replace(manifest, **changes)


def every_kind() -> list[Manifest]:
    """Return one manifest of each kind, and a probe's, whose fields are others."""
    return [
        preference_model_manifest(),
        probe_manifest(),
        feedback_manifest(),
        bank_manifest(),
        policy_manifest(),
        sft_manifest(),
        base_manifest(),
    ]
