"""The model card of an export: README.md with what the Hub reads of it, and what people want to know before they load it."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.exchange.export import Usage
from bigtrain.families.abilities import Samples
from bigtrain.families.family import Family
from bigtrain.runs import atomic
from bigtrain.sizes import size_text
from bigtrain.untrusted import JSON_BYTES, one_line, read_json, read_plain

CARD, PICTURE, EVALUATION = "README.md", "samples.png", "evaluation.json"
_CLASSES_NAMED = 20


@dataclass(frozen=True)
class Card:
    """`evaluation`, `picture`: files of the run of the exported step, None if it has none; `usages`: as of `export`."""

    title: str
    family: Family
    recipe_yaml: str
    provenance: Mapping[str, Any]
    usages: Sequence[Usage]
    evaluation: Path | None
    picture: Path | None

    def write(self, out: Path) -> None:
        """README.md, and the picture and the evaluation beside it, unless there is one. They are not part of the manifest: a
        person edits the card, and the Hub may."""
        if (out / CARD).exists():
            return
        if self.picture is not None:
            atomic.write_bytes(out / PICTURE, read_plain(self.picture, 2**28))
        if self.evaluation is not None:
            atomic.write_bytes(out / EVALUATION, read_plain(self.evaluation, JSON_BYTES))
        atomic.write_bytes(out / CARD, self.text().encode())

    def text(self) -> str:
        parts = [
            self._head(),
            f"# {self.title}",
            self._what(),
            f"![Samples]({PICTURE})" if self.picture is not None else "",
            self._how(),
            self._data(),
            self._evaluation(),
            f"## Training\n\nThe whole recipe, by which bigtrain trains it again:\n\n"
            f"{_fenced(self.recipe_yaml, 'yaml')}",
            "## Limits\n\nTo fill in: what the model is not good for, and what its data do not show.",
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _head(self) -> str:
        samples = self.family.ability(Samples)
        given = samples.conditions_beside_label if samples is not None else ()
        task = "unconditional-image-generation" if not given else "image-to-image" if "image" in given else None
        lines = ["---", "library_name: diffusers", *([f"pipeline_tag: {task}"] if task else [])]
        lines += [
            "tags:",
            *(f"- {tag}" for tag in ("bigtrain", self.family.kind.replace("_", "-"), "image-generation")),
        ]
        lines += ["# license: to fill in, such as apache-2.0", "# datasets: to fill in, such as [OWNER/NAME]", "---"]
        return "\n".join(lines)

    def _what(self) -> str:
        spec, step = self.family.spec, self.provenance["step"]
        images = f"{'grey' if spec.channels == 1 else 'RGB'} images of {size_text(spec.size)} pixels"
        return f"A {self.family.kind} of {images}: {self.provenance['weights']} weights after {step} steps of training."

    def _how(self) -> str:
        if not self.usages:
            return "## Use\n\nIt has no pipeline that draws images; bigtrain's commands open it."
        needs = (
            []
            if self.usages[0].plain
            else ["Runs where bigtrain is installed (`pip install -e .` in its checkout), whose code draws the images."]
        )
        return "\n\n".join(["## Use", *needs, *(_fenced("\n".join(usage.lines), "python") for usage in self.usages)])

    def _data(self) -> str:
        spec = self.family.spec
        names = [_code(name) for name in spec.classes[:_CLASSES_NAMED]]
        more = f" and {len(spec.classes) - len(names)} more" if len(spec.classes) > len(names) else ""
        count = sum(spec.class_counts)
        return (
            f"## Data\n\n{count} images of {len(spec.classes)} classes: {', '.join(names)}{more}.\n\nTo fill in: where they "
            "come from, under which licence, and who agreed to what."
        )

    def _evaluation(self) -> str:
        if self.evaluation is None:
            return "## Evaluation\n\nThe run has no evaluation of this step."
        result = read_json(self.evaluation)
        numbers = {name: value for name, value in result.items() if isinstance(value, float)}
        rows = [f"| {_code(name)} | {value:.6g} |" for name, value in numbers.items()]
        protocol = json.dumps(result.get("protocol", {}), indent=2)
        return "\n".join(
            [
                *("## Evaluation", "", "| metric | value |", "| --- | --- |", *rows, ""),
                *("How it was measured, without which the numbers say little:", "", _fenced(protocol, "json")),
            ]
        )


def _fenced(text: str, language: str) -> str:
    """A block of code, whatever is in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _code(text: str) -> str:
    """A name within a line, so that nothing in it is markup."""
    return f"<code>{html.escape(one_line(text)).replace('|', '&#124;').replace('`', '&#96;')}</code>"
