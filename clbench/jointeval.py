"""Several tasks of lm-eval as one, so that a group of them is one eval and one column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.api.task import ConfigurableTask

from clbench.evalplan import Documents
from clbench.task import Eval

# What writes and scores the documents of all parts together, so it has to be the same in each.
SHARED = (
    "output_type",
    "generation_kwargs",
    "filter_list",
    "metric_list",
    "num_fewshot",
    "target_delimiter",
)


class JointTask(ConfigurableTask):  # type: ignore[misc]
    """The documents of several tasks in their order, each asked and read as its own task does.

    Its scores are means over all documents, so a part weighs what its number of documents does.
    Raises ValueError for parts that are generated, filtered or scored in different ways.
    """

    def __init__(self, spec: Eval, parts: Mapping[str, ConfigurableTask]) -> None:
        self.parts = parts
        configs = [task.config for task in parts.values()]
        for key in SHARED:
            if any(config[key] != configs[0][key] for config in configs):
                raise ValueError(f"the parts of eval {spec.id} differ in {key}")
        documents = Documents(
            {**doc, "part": name, "id": f"{name}/{doc.get('id', number)}"}
            for name, task in parts.items()
            for number, doc in enumerate(task.eval_docs)
        )
        said = {
            key: _distinct([config[key] for config in configs])
            for key in ("doc_to_text", "doc_to_target")
        }
        super().__init__(
            config={
                "task": spec.id,
                "metadata": {"version": spec.version},
                "test_split": "test",
                "custom_dataset": lambda **_: {"test": documents},
                **{key: configs[0][key] for key in SHARED},
                **said,
            }
        )

    def fewshot_docs(self) -> None:
        """Return none: the worked examples are those of the parts."""

    def fewshot_context(self, doc: Mapping[str, Any], *args: Any, **settings: Any) -> Any:
        """Return what a document asks, with the description and the examples of its task."""
        return self._of(doc).fewshot_context(doc, *args, **settings)

    def doc_to_text(self, doc: Mapping[str, Any], doc_to_text: Any = None) -> Any:
        """Return the question of a document."""
        return self._of(doc).doc_to_text(doc, doc_to_text)

    def doc_to_target(self, doc: Mapping[str, Any], doc_to_target: Any = None) -> Any:
        """Return the right answer of a document."""
        return self._of(doc).doc_to_target(doc, doc_to_target)

    def process_results(self, doc: Mapping[str, Any], results: Any) -> Any:
        """Score what was written on a document."""
        return self._of(doc).process_results(doc, results)

    def _of(self, doc: Mapping[str, Any]) -> ConfigurableTask:
        return self.parts[doc["part"]]


def _distinct(said: list[Any]) -> Any:
    """Return what all parts say, or the list of what they say."""
    different = [each for at, each in enumerate(said) if each not in said[:at]]
    return different[0] if len(different) == 1 else different
