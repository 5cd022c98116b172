"""Recipes have the settings of the paper, alone or with an overlay of ``recipes/paper``.

The numbers are those of the third version's text, read in a translation, and where it says so of the published code.
"""

from typing import Any

import pytest
import yaml

from minrnn_lightning.commands.recipes import recipes_folder

SHAKESPEARE = {
    "model": {"dim": 384, "depth": 3, "expansion": 2, "kernel_size": 4, "dropout": 0.2, "lr": 1e-3, "muon_lr": None},
    "data": {"batch_size": 64},
    "trainer": {"max_steps": 5000, "val_check_interval": 25, "gradient_clip_val": 0.25},
}
SELECTIVE_COPYING = {  # of the code
    "model": {"dim": 64, "depth": 3, "expansion": 6, "kernel_size": 0, "mlp_ratio": 0, "dropout": 0.1}
    | {"lr": 3e-4, "weight_decay": 0.05},
    "data": {"batch_size": 64, "length": 4096, "data_tokens": 16, "vocab_size": 16, "eval_batches": 200},
    "trainer": {"max_steps": 400_000, "val_check_interval": 1000, "gradient_clip_val": 1.0},
}
FORMAL_LANGUAGES_CODE = {
    "model": {"dim": 256, "depth": 2, "expansion": 1, "kernel_size": 0, "mlp_ratio": 0, "lr": 3e-4}
    | {"weight_decay": 0.05},
    "data": {"batch_size": 128, "length": 40, "eval_lengths": [40, 256], "encoding": "minrnn"},
    "trainer": {"max_steps": 500_000},
}
FORMAL_LANGUAGES_TEXT = {
    "model": {"depth": 2, "kernel_size": 4, "mlp_ratio": 0, "lr": 3e-4, "weight_decay": 0.01},
    "data": {"batch_size": 256, "length": 40, "eval_lengths": [40, 256]},
    "trainer": {"max_steps": 500_000},
}
GATES = {
    "mingru": {"timescale": 1, "learn_initial_state": True},
    "minlstm": {"timescale": 1, "learn_initial_state": True, "normalize": False, "forget_bias": 3},
}
CODE = {"model": {"mixer_args": GATES}}
D4RL = {
    "model": {"depth": 3, "kernel_size": 0, "dropout": 0.1, "weight_decay": 1e-4, "warmup": 10_000},
    "data": {"batch_size": 64, "length": 20},  # length: of Ota's code, which the paper follows
    "trainer": {"max_steps": 100_000},
}
WIDER, SLOWER = ("hopper_medium", "hopper_medium_replay"), ("hopper_medium", "hopper_medium_replay", "walker2d_medium")
LRA = {
    "model": {"kernel_size": 4, "lr": 1e-3, "weight_decay": 0.05, "warmup": 25_000},  # a tenth of the steps
    "trainer": {"max_steps": 250_000},
}
LRA_SIZES = {  # blocks, width, batch size, length
    "lra/retrieval": (6, 128, 64, 4000),
    "lra/listops": (8, 128, 32, 2000),
    "lra/cifar10": (6, 512, 64, None),
}
TASKS = ("bucket_sort", "cycle_nav", "majority", "majority_count", "missing_duplicate", "parity_check")


def join(*settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings in which later ones overrule earlier ones, as those of a second --config do."""
    parts = {part for each in settings for part in each}
    return {part: {key: value for each in settings for key, value in each.get(part, {}).items()} for part in parts}


def cases() -> list[tuple[str, str, dict[str, dict[str, Any]]]]:
    """Recipe, overlay or "", and what the paper has."""
    found = [
        ("shakespeare", "paper/shakespeare", SHAKESPEARE),
        ("selective_copying", "", SELECTIVE_COPYING),
        ("selective_copying", "paper/selective_copying", join(SELECTIVE_COPYING, CODE)),
        ("formal_languages/even_pairs", "", join(FORMAL_LANGUAGES_CODE, {"trainer": {"max_steps": 100_000}})),
        ("formal_languages/even_pairs", "paper/formal_languages", FORMAL_LANGUAGES_TEXT),
    ]
    for task in TASKS:
        recipe = f"formal_languages/{task}"
        code = join(FORMAL_LANGUAGES_CODE, CODE)
        found += [(recipe, "", FORMAL_LANGUAGES_CODE), (recipe, "paper/formal_languages", FORMAL_LANGUAGES_TEXT)]
        found += [(recipe, "paper/formal_languages_code", code)]
    for env in ("hopper", "walker2d", "halfcheetah"):
        for data in ("medium", "medium_replay", "medium_expert"):
            name = f"{env}_{data}"
            own = {"dim": 256 if name in WIDER else 128, "lr": 1e-4 if name in SLOWER else 1e-3}
            found += [(f"d4rl/{name}", overlay, join(D4RL, {"model": own})) for overlay in ("", "paper/d4rl")]
    for recipe, (depth, dim, batch_size, length) in LRA_SIZES.items():
        data = {"batch_size": batch_size} | ({"length": length} if length else {})
        own = join(LRA, {"model": {"depth": depth, "dim": dim}, "data": data})
        found += [(recipe, overlay, own) for overlay in ("", "paper/lra")]
    return found


def read(name: str) -> dict[str, dict[str, Any]]:
    """The settings in a recipe or overlay."""
    content = yaml.safe_load((recipes_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    return {
        "model": content.get("model", {}).get("init_args", {}),
        "data": content.get("data", {}).get("init_args", {}),
        "trainer": content.get("trainer", {}),
        "lr_scheduler": content.get("lr_scheduler", {}),
    }


def plain(value: Any) -> Any:
    """YAML reads 1e-3 as a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


@pytest.mark.parametrize(
    ("recipe", "overlay", "paper"), cases(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_settings_of_the_paper(recipe, overlay, paper):
    ours = join(read(recipe), *([read(overlay)] if overlay else []))
    for part, settings in paper.items():
        assert {name: plain(ours[part].get(name)) for name in settings} == settings, part
    if overlay:
        head = (recipes_folder() / f"{recipe}.yaml").read_text(encoding="utf-8").partition("seed_everything")[0]
        assert f"minrnn fit --config {recipe} --config {overlay}" in head


def test_learning_rate_is_constant_after_the_warm_up():
    """Where the paper's code has no decay; Decision Transformer's is linear for 10,000 steps and then constant."""
    for name in ("selective_copying", "formal_languages_code"):
        content = yaml.safe_load((recipes_folder() / f"paper/{name}.yaml").read_text(encoding="utf-8"))
        assert content["lr_scheduler"] == {"class_path": "ConstantLR", "init_args": {"factor": 1.0, "total_iters": 0}}
    content = yaml.safe_load((recipes_folder() / "paper/d4rl.yaml").read_text(encoding="utf-8"))
    assert content["lr_scheduler"]["class_path"] == "LinearLR"
    assert content["lr_scheduler"]["init_args"]["total_iters"] == D4RL["model"]["warmup"]
