"""Invalid configs raise errors with field, value and remedy; valid ones round-trip through JSON."""

import dataclasses
import inspect
import json
import math
import time

import pytest

import paxlike.config
from paxlike.config import (
    AdaptConfig,
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    EvalConfig,
    ExpertsConfig,
    GuardConfig,
    InitConfig,
    LogConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PrecisionConfig,
    ProfileConfig,
    QuantConfig,
    RopeScalingConfig,
    TrainConfig,
    UserError,
    WatchdogConfig,
    differences,
    divisors,
    from_json,
    load,
    to_json,
)  # fmt: skip
from paxlike.config.adapt import FIELDS

# (dataclass, fields, a part of the message)
REFUSED = [
    (ModelConfig, {"layers": 0}, "model.layers is 0; it must be greater than 0"),
    (
        ModelConfig,
        {"norm_epsilon": float("nan")},
        "model.norm_epsilon is nan; it must be a finite number",
    ),
    (
        ModelConfig,
        {"heads": 6, "kv_heads": 4},
        r"heads 6 is not a multiple .*kv_heads 4.*among \[1, 2, 3, 6\]",
    ),
    (
        ModelConfig,
        {"heads": 4, "kv_heads": 8},
        r"heads 4 is not a multiple .*kv_heads 8.*among \[1, 2, 4\]",
    ),
    (ModelConfig, {"head_dim": 5}, "model.head_dim 5 is odd"),
    (
        ModelConfig,
        {"remat": "ful"},
        "model.remat is 'ful'; choose among none, full,.* Did you mean full.",
    ),
    (ModelConfig, {"norm": "batch"}, "model.norm is 'batch'; choose among layer, rms."),
    (ModelConfig, {"layers": 4.0}, "model.layers is 4.0; it must be of type int"),
    (ModelConfig, {"heads": True}, "model.heads is True; it must be of type int"),
    (ModelConfig, {"rope_theta": "1e4"}, "model.rope_theta is '1e4'; it must be of type float"),
    (ExpertsConfig, {"count": -1}, "model.experts.count is -1; it must be 0 or more"),
    (ExpertsConfig, {"count": 4, "top_k": 5}, "top_k is 5, above model.experts.count 4"),
    (ExpertsConfig, {"count": 4, "top_k": 0}, "model.experts.top_k is 0; it must be greater"),
    (ExpertsConfig, {"count": 4, "d_ff": 0}, "model.experts.d_ff is 0; it must be greater"),
    (ExpertsConfig, {"count": 4, "top_k": 1}, "top_k is 1 and .* unset renormalize"),
    (ExpertsConfig, {"count": 4, "scores": "relu"}, "scores is 'relu'; choose among softmax, sig"),
    (ExpertsConfig, {"count": 4, "balance_loss": -1.0}, "balance_loss is -1.0; it must be 0"),
    (ExpertsConfig, {"top_k": 3, "shared": 1}, "top_k, shared is set, but .*count is 0"),
    (ModelConfig, {"experts": ExpertsConfig(4)}, "count is 4, and the blocks are parallel;"),
    (ModelConfig, {"block": "serial_experts"}, "count is 0, and the blocks are serial_experts;"),
    (
        ModelConfig,
        {"block": "serial_experts", "experts": ExpertsConfig(4), "feed_forward": "gelu"},
        "feed_forward is gelu .*experts are gated",
    ),
    (
        ModelConfig,
        {"block": "serial_experts", "experts": ExpertsConfig(4), "quant": QuantConfig("bitnet")},
        "quant.weights is bitnet, but blocks with experts are not quantized",
    ),
    (
        ModelConfig,
        {"block": "serial_expert_heads", "experts": ExpertsConfig(4), "qk_norm": "head"},
        "qk_norm is head and .*blocks with expert_heads have none of them: remove them",
    ),
    (
        ModelConfig,
        {
            "block": "serial_expert_heads",
            "experts": ExpertsConfig(4),
            "quant": QuantConfig("bitnet"),
        },
        "quant.weights is bitnet, but blocks with experts are not quantized",
    ),
    (InitConfig, {"config": True}, "init.config is set, but init.source is empty"),
    (InitConfig, {"source": "a", "kv_heads": "min"}, "init.kv_heads is 'min'; choose among"),
    (DataConfig, {"sequence_length": 0}, "data.sequence_length is 0"),
    (DataConfig, {"tokenizer_vocab": -1}, "data.tokenizer_vocab is -1"),
    (DataConfig, {"seed": -1}, "data.seed is -1; it must be in 0"),
    (DataConfig, {"packing": "hole"}, "data.packing is 'hole'.* Did you mean whole."),
    (OptimConfig, {"learning_rate": 0.0}, "optim.learning_rate is 0.0"),
    (OptimConfig, {"epsilon": -1e-8}, "optim.epsilon is -1e-08"),
    (OptimConfig, {"warmup_steps": -1}, "optim.warmup_steps is -1; it must be 0 or more"),
    (OptimConfig, {"warmup_steps": 0}, "the palm schedule is constant for warmup_steps"),
    (OptimConfig, {"beta1": 1.0}, r"optim.beta1 is 1.0; it must be in \[0, 1\)"),
    (OptimConfig, {"beta2": -0.1}, "optim.beta2 is -0.1"),
    (OptimConfig, {"clip": -1.0}, "optim.clip is -1.0; it must be 0 or more"),
    (OptimConfig, {"final_fraction": -0.1}, "optim.final_fraction is -0.1"),
    (
        OptimConfig,
        {"second_learning_rate": 1e-3},
        "second_learning_rate is 0.001 and optim.schedule is palm; two_stage requires",
    ),
    (
        OptimConfig,
        {"schedule": "two_stage"},
        "second_learning_rate is 0.0 and optim.schedule is two_stage",
    ),
    (QuantConfig, {"weights": "bitnet", "groups": 0}, "model.quant.groups is 0"),
    (QuantConfig, {"weights": "bit"}, "model.quant.weights is 'bit'.* Did you mean bitnet"),
    (
        QuantConfig,
        {"groups": 4},
        "model.quant.groups is set, but model.quant.weights is none; choose bitnet",
    ),
    (
        QuantConfig,
        {"weights": "bitnet", "variant": "code", "nonnegative": True},
        "nonnegative requires model.quant.variant paper",
    ),
    (
        ModelConfig,
        {"quant": QuantConfig("bitnet", groups=3)},
        r"quant.groups 3 does not divide model.heads 4;.*\[1, 2, 4\]",
    ),
    (
        ModelConfig,
        {"quant": QuantConfig("bitnet", groups=4), "d_ff": 258},
        "groups 4 does not divide model.d_ff 258",
    ),
    (
        ModelConfig,
        {"quant": QuantConfig("bitnet", data_tiles=3)},
        "d_model 256 into 3 parts .data_tiles 3., which does not",
    ),
    (
        ModelConfig,
        {"quant": QuantConfig("bitnet", groups=4, data_tiles=5), "d_model": 250},
        "d_model 250 into 20 parts .data_tiles 5 x groups 4., which does not divide",
    ),
    (OptimConfig, {"name": "adamw", "weight_decay": -0.1}, "optim.weight_decay is -0.1"),
    (OptimConfig, {"name": "palm", "weight_decay": 0.1}, "which optim.name palm does not use"),
    (TrainConfig, {"steps": 0}, "train.steps is 0"),
    (TrainConfig, {"z_loss": -1.0}, "train.z_loss is -1.0"),
    (TrainConfig, {"seed": 2**32}, "train.seed is 4294967296; it must be in 0"),
    (
        TrainConfig,
        {"batch_size": 12, "accumulate": 5},
        r"12 sequences .*accumulate 5 .*\[1, 2, 3, 4, 6, 12\]",
    ),
    (
        TrainConfig,
        {"batch_size": 8, "accumulate": 4, "batch_ramp": ((6, 5),)},
        "batch of 6 sequences",
    ),
    (TrainConfig, {"batch_ramp": ((4, 10), (8, 10))}, "with increasing steps"),
    (TrainConfig, {"batch_ramp": ((4, 10), (8, 5))}, "with increasing steps"),
    (TrainConfig, {"batch_ramp": ((4, 0),)}, "with increasing steps"),
    (TrainConfig, {"batch_ramp": ((0, 5),)}, "batch of 0 sequences"),
    (TrainConfig, {"batch_ramp": ((-3, 5),)}, "batch of -3 sequences"),
    (TrainConfig, {"batch_ramp": [(4, 5)]}, "must be .*sequences, until step"),
    (TrainConfig, {"batch_ramp": ((4,),)}, "must be .*sequences, until step"),
    (TrainConfig, {"batch_ramp": ((4, 1e3),)}, "all integers"),
    (MeshConfig, {"pod": 0}, "mesh.pod is 0; give a size above 0, or -1"),
    (MeshConfig, {"model": -2}, "mesh.model is -2"),
    (MeshConfig, {"data": -1, "model": -1}, "mesh 1 x -1 x -1 has -1 more than once"),
    (
        PrecisionConfig,
        {"compute": "bf16"},
        "precision.compute is 'bf16'; .* Did you mean bfloat16.",
    ),
    (CheckpointConfig, {"every": 0}, "checkpoint.every is 0"),
    (CheckpointConfig, {"keep": 0}, "checkpoint.keep is 0"),
    (CheckpointConfig, {"keep_every": -1}, "checkpoint.keep_every is -1"),
    (EvalConfig, {"every": -1}, "eval.every is -1"),
    (EvalConfig, {"batches": 0}, "eval.batches is 0"),
    (LogConfig, {"every": 0}, "log.every is 0"),
    (LogConfig, {"wandb": 1}, "log.wandb is 1; it must be of type bool"),
    (ProfileConfig, {"steps": 0}, "profile.steps is 0"),
    (Config, {"name": ""}, "name '' is used as a directory name"),
    (Config, {"name": "a/b"}, "name 'a/b' is used as a directory name"),
    (Config, {"name": ".hidden"}, "name '.hidden' is used as a directory name"),
    (Config, {"model": {"layers": 2}}, "config.model is .*; it must be of type ModelConfig"),
]


@pytest.mark.parametrize(("kind", "fields", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused(kind, fields, message):
    with pytest.raises(ConfigError, match=message):
        kind(**fields)


def sections(kind: type = Config) -> list[type]:
    """A config dataclass and those of its fields."""
    fields = [field.type for field in dataclasses.fields(kind)]
    return [kind, *(s for f in fields if dataclasses.is_dataclass(f) for s in sections(f))]


@pytest.mark.parametrize("kind", sections())
def test_every_section_checks_types(kind):
    first = dataclasses.fields(kind)[0].name
    with pytest.raises(ConfigError, match=f"{first} is None"):
        kind(**{first: None})


FLOATS = [
    (kind, f.name) for kind in sections() for f in dataclasses.fields(kind) if f.type is float
]


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, math.nan, 10**400], ids=lambda v: str(v)[:9]
)
@pytest.mark.parametrize(("kind", "field"), FLOATS)
def test_every_float_must_be_finite(kind, field, value):
    with pytest.raises(ConfigError, match=f"{field} is .*; it must be a finite number"):
        kind(**{field: value})


def test_the_finite_check_covers_the_learning_rate():
    assert (OptimConfig, "learning_rate") in FLOATS and len({kind for kind, _ in FLOATS}) >= 5


@pytest.mark.parametrize("n", [*range(1, 200), 720_720, 65_537**2])
def test_divisors_are_complete_below_2_to_the_32(n):
    # 65,537 is above the limit of the trial division.
    expected = [1, n] if n > 10**9 else [d for d in range(1, n + 1) if n % d == 0]
    assert divisors(n) == expected


@pytest.mark.parametrize(
    ("kind", "fields", "nearest"),
    [
        (ModelConfig, {"heads": 2**31, "kv_heads": 3}, "[1, 2, 4, 8, "),
        (ModelConfig, {"heads": 2**61 - 1, "kv_heads": 3}, f"[1, {2**61 - 1}]."),
        (ModelConfig, {"heads": 10**30, "kv_heads": 3}, "[1, 2, 4, 5, "),
        (TrainConfig, {"batch_size": 2**40, "accumulate": 3}, "[1, 2, 4, 8, "),
        (TrainConfig, {"batch_size": 720_720, "accumulate": 721}, " 715, 720, 728, "),
        (ModelConfig, {"quant": QuantConfig("bitnet", groups=3), "heads": 2**31}, "[1, 2, 4, 8, "),
    ],
)
def test_suggested_divisors_are_few_and_quick(kind, fields, nearest):
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        kind(**fields)
    message = str(caught.value)
    assert nearest in message and len(message) < 400
    assert time.monotonic() - start < 5  # counting to 2**31 takes minutes


def test_a_mesh_with_many_devices_suggests_the_nearest_divisors():
    with pytest.raises(
        ConfigError, match=r"among \[1, 2, 4, .*, 2048\] or another divisor of 2147"
    ):
        MeshConfig(1, -1, 3).resolve(2**31)
    with pytest.raises(ConfigError, match="the number of devices is 0"):
        MeshConfig().resolve(0)


@pytest.mark.parametrize(
    ("sizes", "devices", "resolved"),
    [
        ((1, -1, 4), 8, (1, 2, 4)),
        ((1, 2, 4), 8, (1, 2, 4)),
        ((-1, 2, 2), 8, (2, 2, 2)),
        ((1, 1, -1), 8, (1, 1, 8)),
        ((1, -1, 1), 1, (1, 1, 1)),
        ((2, -1, 12), 6144, (2, 256, 12)),
    ],
)
def test_an_open_mesh_axis_takes_the_remaining_devices(sizes, devices, resolved):
    assert MeshConfig(*sizes).resolve(devices) == dict(
        zip(("pod", "data", "model"), resolved, strict=True)
    )


def test_a_mesh_has_the_axis_expert_only_where_it_is_above_1():
    found = MeshConfig(2, -1, 3, expert=4).resolve(48)
    assert list(found.items()) == [("pod", 2), ("data", 2), ("expert", 4), ("model", 3)]
    with pytest.raises(ConfigError, match="mesh pod 1 x data -1 x expert 3 x model 1 does not fit"):
        MeshConfig(expert=3).resolve(8)
    with pytest.raises(ConfigError, match="mesh.expert is -1; give a size above 0"):
        MeshConfig(expert=-1)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (6, r"mesh.expert 4 does not divide model.experts.count 6; .* among \[1, 2, 3, 6\]"),
        (0, r"mesh.expert is 4, but the model has no experts .*set mesh.expert to 1"),
    ],
)
def test_an_expert_axis_that_does_not_fit_the_experts(count, message):
    blocks = {"block": "serial_experts", "experts": ExpertsConfig(count)} if count else {}
    with pytest.raises(ConfigError, match=message):
        Config(model=ModelConfig(**blocks), mesh=MeshConfig(expert=4))


@pytest.mark.parametrize(
    ("sizes", "devices"), [((1, -1, 3), 8), ((1, 2, 2), 8), ((4, 4, 1), 8), ((1, -1, 16), 8)]
)
def test_a_mesh_that_does_not_fit_the_devices(sizes, devices):
    with pytest.raises(
        ConfigError, match=rf"does not fit {devices} devices; .*among \[1, 2, 4, 8\]"
    ):
        MeshConfig(*sizes).resolve(devices)


def test_the_vocabulary_is_padded_to_a_multiple():
    rows = [
        ModelConfig(vocab_size=size, vocab_multiple=128).vocab_rows for size in (1, 127, 128, 129)
    ]
    assert rows == [128, 128, 128, 256]
    assert ModelConfig(vocab_size=256_000, vocab_multiple=1536).vocab_rows == 256_512


@pytest.mark.parametrize("ramp", [(), ((4, 3),), ((2, 1), (6, 2), (4, 7))])
def test_batch_ramp(ramp):
    train = TrainConfig(steps=10, batch_size=8, accumulate=2, batch_ramp=ramp)
    wanted = [next((size for size, until in ramp if step < until), 8) for step in range(12)]
    assert [train.batch_size_at(step) for step in range(12)] == wanted
    assert [train.sequences_before(step) for step in range(13)] == [
        sum(wanted[:step]) for step in range(13)
    ]


def changed() -> Config:
    """A config in which every field that can differ from its default does."""
    return Config(
        name="other-1",
        model=ModelConfig(
            layers=3,
            d_model=48,
            heads=6,
            kv_heads=2,
            head_dim=10,
            d_ff=96,
            vocab_size=300,
            vocab_multiple=64,
            block="serial",
            pattern=("serial", "parallel_local", "serial"),
            sliding_window=8,
            norm="rms",
            norm_offset=True,
            feed_forward="relu2",
            attention_bias="qkvo",
            qk_norm="head",
            head="untied",
            feed_forward_bias=True,
            rope_theta=5e5,
            local_rope_theta=1e3,
            rope_fraction=0.5,
            rope_scaling=RopeScalingConfig("yarn", 2.0, 16, 2.0, 8.0, 16.0, 0.5, 1.5, False),
            norm_epsilon=1e-5,
            attention="xla",
            logit_scale=0.5,
            logit_softcap=30.0,
            attention_softcap=50.0,
            query_scale=0.1,
            embedding_scale=2.0,
            remat="dots",
            quant=QuantConfig("bitnet", "code", 2, 3, "tensor"),
        ),
        data=DataConfig("", 128, "whole", "bytes", 300, 7, "mixture", "tasks.py"),
        optim=OptimConfig("adamw", 1e-3, "two_stage", 5e-4, 5, 0.2, 0.8, 0.95, 1e-9, 0.1, 0.5),
        train=TrainConfig(7, 12, ((4, 2), (6, 5)), 2, 1e-3, 3),
        adapt=AdaptConfig(
            "lora", 4, 8.0, True, 0.1, targets=("attention",), train=("norms",), layers=(0,)
        ),
        mesh=MeshConfig(2, 2, -1),
        precision=PrecisionConfig("bfloat16", "bfloat16", "bfloat16"),
        checkpoint=CheckpointConfig(10, 2, 50),
        eval=EvalConfig(5, 2),
        log=LogConfig(2, False, True, "def"),
        profile=ProfileConfig(4, 2),
        guard=GuardConfig(1, 5, 200, 30, 5.0, 2, True),
        watchdog=WatchdogConfig(10.0, 60.0),
        init=InitConfig("runs/base", True, "first", ("head_DV",)),
    )


def with_experts() -> Config:
    """A config whose experts differ from the defaults in every field."""
    experts = ExpertsConfig(6, 3, 24, 2, "sigmoid", False, 2.5, 0.02, 0.002, 0.01, True)
    return Config(
        model=ModelConfig(pattern=("serial", "serial_experts"), experts=experts),
        mesh=MeshConfig(expert=2, expert_transport="all_to_all"),
    )


EXPERT_AXIS = {"mesh.expert", "mesh.expert_transport"}


def test_every_field_of_experts_differs():
    found = {line.split(":")[0] for line in differences(Config(), with_experts())}
    fields = {f"model.experts.{field.name}" for field in dataclasses.fields(ExpertsConfig)}
    assert fields | EXPERT_AXIS < found


@pytest.mark.parametrize(
    "config", [Config(), changed(), with_experts()], ids=["default", "changed", "experts"]
)
def test_json_round_trip(config):
    again = from_json(to_json(config))
    assert again == config and differences(config, again) == []
    hash(again)


def test_every_field_differs_by_its_dotted_name():
    found = [line.split(":")[0] for line in differences(Config(), changed())]

    def names(section: dict, prefix: str = "") -> list[str]:
        return [
            name
            for key, value in section.items()
            for name in (
                names(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
            )
        ]

    lora = ("kind", "train", "layers", *FIELDS["lora"])
    # variant code excludes nonnegative, quantization norms of outputs, RMS norms a bias, RoPE
    # learned positions, a mixture of seqio other sources, LoRA other adapters, and quantization
    # experts.
    cannot = (
        "model.quant.nonnegative", "model.norm_placement", "model.norm_bias",
        "model.learned_positions", "data.store", "data.mixture", "data.mixture_changes",
        *(f"adapt.{f.name}" for f in dataclasses.fields(AdaptConfig) if f.name not in lora),
        *(f"model.experts.{field.name}" for field in dataclasses.fields(ExpertsConfig)),
        *EXPERT_AXIS,
    )  # fmt: skip
    assert found == [name for name in names(dataclasses.asdict(Config())) if name not in cannot]
    assert "train.batch_ramp: () -> ((4, 2), (6, 5))" in differences(Config(), changed())


def test_json_with_an_unknown_field():
    values = json.loads(to_json(Config()))
    values["optim"]["learning_rat"] = 1.0
    with pytest.raises(
        ConfigError,
        match="unknown config field optim.learning_rat; .* Did you mean learning_rate.",
    ):
        from_json(json.dumps(values))


@pytest.mark.parametrize(
    "text",
    ["[]", '{"model": 3}', '{"train": {"steps": "many"}}', '{"train": {"batch_ramp": [[1]]}}'],
)
def test_json_that_is_not_a_config(text):
    with pytest.raises(ConfigError):
        from_json(text)


GOOD = (
    "from paxlike.config import Config, ModelConfig\n\n\ndef config():\n    return "
    "Config(name='mine')\n"
)


def test_a_star_import_has_every_section_and_no_module():
    """A user's config file starts with it, so it must not define `model` or `json`."""
    names = {name: getattr(paxlike.config, name) for name in paxlike.config.__all__}
    sections = {
        type(value).__name__ for value in (Config(), *vars(Config()).values(), QuantConfig())
    } - {"str"}
    assert sections < set(names) and {"Hosts", "load", "to_json", "UserError"} < set(names)
    assert not [name for name, value in names.items() if inspect.ismodule(value)]


def test_load(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    assert load(path) == load(str(path)) == Config(name="mine")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n", "mine.py: it defines no function `config"),
        ("config = 3\n", "mine.py: it defines no function `config"),
        (
            GOOD.replace("Config(name='mine')", "{}"),
            r"mine.py: config\(\) returned a dict, not a paxlike Config",
        ),
        (GOOD.replace("return ", ""), r"config\(\) returned a NoneType"),
        (GOOD.replace("name='mine'", "ModelConfig(layers=0)"), "mine.py: model.layers is 0"),
        (
            GOOD.replace("name='mine'", "model=ModelConfig(layer=2)"),
            "argument 'layer'.*Did you mean layers.",
        ),
        (GOOD.replace("name=", "modle="), "argument 'modle'.*Did you mean model."),
        (GOOD.replace("Config(name", "Confg(name"), "NameError: name 'Confg' is not defined"),
        (GOOD.replace("'mine'", "'mine"), "mine.py: SyntaxError"),
        (
            "import nothing_of_the_sort\n",
            "mine.py: ModuleNotFoundError: No module named 'nothing_of_the_sort'",
        ),
    ],
    ids=range(10),
)
def test_load_reports_the_problem(tmp_path, source, message):
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "mine.py")


def test_load_of_a_missing_file_suggests_a_similar_name(tmp_path):
    (tmp_path / "palm_8b.py").write_text(GOOD)
    with pytest.raises(UserError, match=r"no config file .*palm8b.py. Did you mean .*palm_8b.py."):
        load(tmp_path / "palm8b.py")
    with pytest.raises(UserError, match=r"no config file .*zzz.py.$"):
        load(tmp_path / "nowhere" / "zzz.py")
