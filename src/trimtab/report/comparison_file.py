"""comparison.json, as ``trimtab compare`` writes it; keys that are not drawn are left out here.

Every ``Measured`` is a mean with its 95 % interval, over prompts and seeds.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from trimtab.report.measured import Lenient, Measured


class Budget(Lenient):
    """What every method was given the same of."""

    unit: str
    amount: float
    sentence: str


class Judge(Lenient):
    """A reward by its name."""

    name: str
    higher_is_better: bool = True


class Base(Lenient):
    """What all methods start from."""

    name: str
    gold: Measured
    proxy: Measured | None = None
    length: Measured | None = None
    end_rate: Measured | None = None
    text_loss: Measured | None = None
    run: str = ""


class Examined(Lenient):
    """One checkpoint of one seed's run."""

    method: str
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    label: str = ""
    seed: int = 0
    step: int
    final: bool = False
    run: str = ""
    gold: Measured
    proxy: Measured | None = None
    kl: Measured
    length: Measured | None = None
    end_rate: Measured | None = None
    text_loss: Measured | None = None
    seconds: float | None = None
    tokens: int | None = None


class Worth(Lenient):
    """A checkpoint over all seeds."""

    label: str = ""
    step: int
    kl: Measured | None = None
    gold: Measured | None = None
    proxy: Measured | None = None
    length: Measured | None = None
    end_rate: Measured | None = None
    text_loss: Measured | None = None


class Line(Lenient):
    """Checkpoints of a method."""

    method: str
    points: list[Worth]


class Chosen(Worth):
    """The best of a method, chosen on other prompts than those that it is examined on."""

    method: str
    chosen_on: str = ""
    tax: Measured | None = None
    seconds: float | None = None
    tokens: float | None = None


class Level(Lenient):
    """All methods at one KL."""

    kl: float
    gold: dict[str, Measured | None]


class Pair(Lenient):
    """Two methods against each other."""

    a: str
    b: str
    win_rate: Measured
    length_controlled: Measured | None = None
    p: float
    p_adjusted: float
    differs: bool


class Told(Lenient):
    """An answer of a method."""

    method: str
    text: str
    gold: float
    proxy: float | None = None
    length: int | None = None


class Sample(Lenient):
    """A prompt with the answers of all."""

    prompt: str
    answers: list[Told]


class Comparison(Lenient):
    """comparison.json."""

    kind: str
    name: str
    command: str = ""
    seconds: float | None = None
    environment: dict[str, Any] = Field(default_factory=dict[str, Any])
    recipe: dict[str, Any] = Field(default_factory=dict[str, Any])
    recipe_from: dict[str, str] | None = None  # key -> where it was given; None: not known
    budget: Budget
    judge: Judge
    proxy: Judge | None = None
    seeds: list[int]
    prompts: int
    kl_estimator: str = ""
    base: Base
    points: list[Examined]
    frontier: list[Line]
    curves: list[Line] = Field(default_factory=list[Line])
    at_kl: list[Level] = Field(default_factory=list[Level])
    failed: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    left_out: list[Any] = Field(default_factory=list[Any])
    intervals: str = ""
    chosen: list[Chosen] = Field(default_factory=list[Chosen])
    pairs: list[Pair] = Field(default_factory=list[Pair])
    correction: str = ""
    samples: list[Sample] = Field(default_factory=list[Sample])
    verdict: list[str]
