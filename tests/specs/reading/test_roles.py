"""Roles are stated at the field: today's sets of fields follow from them, and a field without a role is safe."""

from inspect import signature
from operator import attrgetter
from typing import Annotated, Any

import pytest
from builders import run_spec, search_spec

from ftae.engine.training.checkpoint import MAY_DIFFER
from ftae.engine.training.model_reuse import TRAINING_ONLY
from ftae.inference.source import SETTABLE
from ftae.search.driver import MAY_CHANGE
from ftae.specs import METRICS, DiscriminatorSpec, FinetuneSpec, Losses, Optimizer, Schedule, SearchSettings
from ftae.specs.finetune.losses import Term
from ftae.specs.finetune.needs import Enables
from ftae.specs.reading.base import Spec
from ftae.specs.reading.schema import (
    AfterTraining,
    Governed,
    Joint,
    KeepsValidation,
    MayDiffer,
    Means,
    NotSearched,
    Role,
    TrainingOnly,
    fields_with,
    roles_below,
    roles_in,
    without_means,
)
from ftae.specs.search.distributions import CONDITIONS
from ftae.specs.search.lint import warnings
from ftae.specs.search.space import JOINT_GROUPS, NOT_SEARCHED

# ---------------------------------------------------------------------------- the sets of today


def test_the_settings_that_another_governs() -> None:
    adam = ("adamw", "adam", "radam")
    ada = Governed("discriminator.augment.name", ("ada",))
    assert {
        "losses.huber_delta": Governed("losses.huber"),
        "losses.kl_warmup_fraction": Governed("losses.kl"),
        "losses.kl_capacity": Governed("losses.kl"),
        "losses.path_length": Governed("losses.adversarial"),
        "discriminator.pool_size": Governed("losses.cycle"),
        "discriminator": Governed("losses.adversarial"),
        "discriminator.norm": Governed("discriminator.architecture", ("patch",)),
        "discriminator.channels": Governed("discriminator.architecture", ("patch", "dcgan")),
        "discriminator.depth": Governed("discriminator.architecture", ("patch",)),
        "discriminator.channel_base": Governed("discriminator.architecture", ("stylegan2",)),
        "discriminator.channel_max": Governed("discriminator.architecture", ("stylegan2",)),
        "discriminator.max_adaptive_weight": Governed("discriminator.adaptive"),
        "discriminator.r1_every": Governed("discriminator.r1"),
        "discriminator.augment.policy": Governed("discriminator.augment.name", ("diffaugment", "ada")),
        "discriminator.augment.turns": ada,
        "discriminator.augment.target": ada,
        "discriminator.augment.speed_fraction": ada,
        "schedule.num_cycles": Governed("schedule.name", ("cyclical",)),
        "schedule.final_fraction": Governed("schedule.name", ("linear", "cosine", "cyclical")),
        "optimizer.betas": Governed("optimizer.name", adam),
        "optimizer.momentum": Governed("optimizer.name", ("sgd",)),
    } == CONDITIONS


def test_the_leaves_that_cannot_be_searched() -> None:
    by_budget = {"max_steps", "num_evals", "metrics", "num_samples"}
    means = {"frozen_cache_gb", "checkpoint_stages", "data.cache_gb", "data.replay.cache_gb"}
    assert set(NOT_SEARCHED) == {*by_budget, "num_threads", "device", *means}
    assert NOT_SEARCHED["frozen_cache_gb"] == "no result depends on it"


def test_the_leaves_that_a_rule_compares() -> None:
    assert {frozenset(group) for group in JOINT_GROUPS} == {
        frozenset(
            (
                *("model", "data", "perceptual", "features", "losses", "discriminator", "metrics"),
                *("num_samples", "sample_posterior"),
            )
        ),
        frozenset(
            f"discriminator.{name}"
            for name in ("architecture", "norm", "channels", "depth", "channel_base", "channel_max")
        ),
        frozenset(f"discriminator.augment.{name}" for name in ("name", "policy", "turns", "target", "speed_fraction")),
        frozenset(("optimizer.name", "optimizer.betas", "optimizer.momentum")),
        frozenset(("schedule.name", "schedule.num_cycles", "schedule.final_fraction")),
    }


def test_the_fields_that_matter_in_training_alone() -> None:
    optimisation = {"optimizer", "schedule", "max_grad_norm", "ema_half_life_fraction", "grad_accumulation"}
    others = {"losses", "discriminator", "freeze_depth", "freeze", "max_steps", "num_evals"}
    assert set(TRAINING_ONLY) == optimisation | others


def test_the_fields_with_which_a_run_may_be_resumed() -> None:
    assert MAY_DIFFER == ("max_steps", "num_evals", "num_threads")
    means = {"frozen_cache_gb": 1.0, "data": {"cache_gb": 2.0, "val": 3, "replay": {"cache_gb": 1.0, "share": 0.5}}}
    assert without_means(FinetuneSpec, means) == {"data": {"val": 3, "replay": {"share": 0.5}}}


def test_the_settings_with_which_a_search_may_be_resumed() -> None:
    limits = {"num_trials", "budget", "max_hours", "max_concurrent", "max_failures", "wait_for_nodes_minutes"}
    assert set(MAY_CHANGE) == limits | {
        "resources",
        "keep_checkpoints",
        "confirm",
        "max_storage_gb",
        "storage",
        "notify",
    }
    assert set(SearchSettings.model_fields) - set(MAY_CHANGE) == {"sampler", "scheduler", "seed", "warm_start"}


def test_the_fields_that_a_finished_model_can_still_be_given() -> None:
    assert set(SETTABLE) == {"data", "batch_size", "device", "num_threads"}


def test_the_leaves_of_data_that_keep_the_validation_images() -> None:
    leaves = {path for path in roles_below(FinetuneSpec, KeepsValidation) if "replay.replay" not in path}
    # Replayed images take no labelled_fraction, so nobody can search that leaf.
    assert leaves - {"data.replay.labelled_fraction"} == {
        "data.flip",
        "data.labelled_fraction",
        "data.replay.share",
        "data.replay.flip",
    }


def test_the_losses_and_metrics_that_use_a_network() -> None:
    network = {"net": "vgg16", "weights": "w.pth"}
    unused = run_spec(perceptual=network, features={"net": "resnet18", "weights": "w.pth"})
    found = [sentence for sentence in warnings(search_spec(finetune=unused.model_dump())) if "none of" in sentence]
    assert found == [
        "perceptual has no effect: none of lpips, vgg is a loss or metric of the run",
        "features has no effect: none of rfid, fid, fid_train, fid_floor, kid, kid_train, kid_floor, precision, "
        "precision_train, precision_floor, recall, recall_train, recall_floor, diversity, diversity_floor, memorised is"
        " a loss or metric of the run",
    ]


# ------------------------------------------------------------------------------- the mechanism


class Inner(Spec):
    plain: int = 0
    seed: Annotated[int, Means()] = 0
    again: "Inner | None" = None


class Outer(Spec):
    first: Annotated[int, MayDiffer(), Means()] = 0
    second: Annotated[Annotated[int | None, TrainingOnly()], NotSearched("it is fixed")] = None
    section: Annotated[Inner, Governed("first")] = Inner()
    others: Inner | dict[str, int] = {}


def test_roles_are_found_by_kind_and_path() -> None:
    assert roles_in(Outer, NotSearched) == {"second": NotSearched("it is fixed")}
    assert roles_in(Outer, TrainingOnly) == {"second": TrainingOnly()}
    paths = ["first", "section.seed", "section.again.seed", "others.seed", "others.again.seed"]
    assert roles_below(Outer, Means) == dict.fromkeys(paths, Means())
    assert fields_with(Outer, Means, Governed) == ("first", "section")
    assert fields_with(Outer, AfterTraining) == ()


def test_roles_change_nothing_else_of_a_field() -> None:
    assert Outer(first="3").first == 3  # type: ignore[arg-type]
    assert Outer().model_dump() == {"first": 0, "second": None, "section": {"plain": 0, "seed": 0, "again": None},
                                    "others": {}}  # fmt: skip


def test_a_condition_holds_for_its_values_or_for_all_that_are_not_off() -> None:
    by_choice, by_weight = Governed("optimizer.name", ("adam", "sgd")), Governed("losses.kl")
    assert [by_choice.holds(name) for name in ("adam", "adamw")] == [True, False]
    assert [by_weight.holds(weight) for weight in (0.0, None, False, 1e-9)] == [False, False, False, True]
    assert (str(by_choice), str(by_weight)) == ("optimizer.name is adam or sgd", "losses.kl is on")
    assert by_choice.governing(run_spec()) == "adamw"


def test_a_field_without_a_role_gets_the_most_careful_treatment() -> None:
    """``seed`` and ``precision`` have none, as a new field would."""
    for name in ("seed", "precision"):
        assert not any(isinstance(extra, Role) for extra in FinetuneSpec.model_fields[name].metadata)
        assert name not in (*TRAINING_ONLY, *MAY_DIFFER, *SETTABLE, *NOT_SEARCHED)
    assert not any(isinstance(extra, Role) for extra in SearchSettings.model_fields["sampler"].metadata)
    assert "sampler" not in MAY_CHANGE


# ----------------------------------------------------------------- what a field has to state


def sections() -> list[tuple[type[Spec], str]]:
    return [(FinetuneSpec, ""), (Optimizer, "optimizer."), (Schedule, "schedule."),
            (DiscriminatorSpec, "discriminator.")]  # fmt: skip


def test_a_field_that_a_validator_compares_with_others_states_its_group() -> None:
    """Otherwise a search would not try its values together with those of the others."""
    covered = {path for group in JOINT_GROUPS for path in group}
    for spec_type, prefix in sections():
        for validator in spec_type.__pydantic_decorators__.field_validators.values():
            if "info" in signature(validator.func).parameters:
                for field in validator.info.fields:
                    path = f"{prefix}{field}"
                    is_fixed = path in NOT_SEARCHED
                    assert is_fixed or any(path == part or path.startswith(f"{part}.") for part in covered), path


def test_every_governor_and_every_value_of_it_exists() -> None:
    spec = run_spec(**{"losses.adversarial": 0.1})
    for setting, governed in CONDITIONS.items():
        governed.governing(spec)
        section, _, name = governed.governor.rpartition(".")
        choices = attrgetter(section)(spec).__class__.model_fields[name].annotation.__args__ if governed.values else ()
        assert set(governed.values) <= set(choices), setting


def test_every_weight_is_a_term_and_every_other_setting_of_losses_is_governed_by_one() -> None:
    terms = roles_in(Losses, Term)
    assert list(Losses.TERMS) == list(terms)
    governed = roles_in(Losses, Governed)
    assert set(Losses.model_fields) == {*terms, *governed}
    assert {role.governor.removeprefix("losses.") for role in governed.values()} <= set(terms)


def test_every_network_that_a_need_asks_for_is_enabled_by_a_field() -> None:
    networks = {role.need for role in roles_in(FinetuneSpec, Enables).values()}
    used = {need for needs in Losses.TERMS.values() for need in needs} | {n for m in METRICS.values() for n in m.needs}
    assert networks <= used
    assert {need.description for need in networks} == {"finetune.perceptual", "finetune.features"}


def test_joint_fields_name_one_group() -> None:
    assert len({role.group for role in roles_in(FinetuneSpec, Joint).values()}) == 1


@pytest.mark.parametrize("spec_type", [FinetuneSpec, SearchSettings])
def test_a_means_is_neither_searched_nor_part_of_training(spec_type: Any) -> None:
    for name in fields_with(spec_type, Means):
        roles = [extra for extra in spec_type.model_fields[name].metadata if isinstance(extra, Role)]
        assert roles == [Means()], "the role says everything"
