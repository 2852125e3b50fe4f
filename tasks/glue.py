"""Short classification tasks of lm-eval's own, trained on in the very words that it asks them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clbench.dataset import DataSet, Source, Template, Values
from clbench.task import Eval, Task

from .real import learning

MOST_ITEMS = 2000  # in the default run; --eval full asks everything


@dataclass(frozen=True)
class Labelled:
    """One task of lm-eval: where its records lie, how it asks, what each label is called.

    `prompt` is lm-eval's own, with {column} for its {{column}}; the label of a record is the
    position of its text in `labels`.
    """

    name: str  # of ours
    lm_eval: str  # its own
    version: int
    data: DataSet
    prompt: str
    labels: tuple[str, ...]
    about: str
    num_items: int  # in the split that is scored
    split: str = "validation"  # what is scored; the labels of GLUE's tests are not published
    others: tuple[str, ...] = ()

    def task(self) -> Task:
        """Return the task, trained on the train split."""
        source = Source(self.data, Template(self.prompt, " {answer}"), self._row)
        return learning(self.name, source, (self._eval(),), self.about)

    def _eval(self) -> Eval:
        scored = DataSet(
            self.data.id,
            self.split,
            self.data.config,
            columns=self.data.columns,
            license=self.data.license,
        )
        return Eval(
            id=self.name,
            version=self.version,
            config=self.lm_eval,
            metric="acc,none",
            other_metrics=self.others,
            chance=1 / len(self.labels),
            data={self.split: scored},
            prepare=self._document,
            num_items=self.num_items,
            default_items=MOST_ITEMS,
            about=self.about,
        )

    def _document(self, record: Values) -> Values:
        return {**record, "probe": self.prompt.format_map(derived(record))}

    def _row(self, record: Values) -> Values:
        return {**derived(record), "answer": self.labels[record["label"]]}


def derived(record: Values) -> Mapping[str, object]:
    """Return a record with what lm-eval's prompts compute from its columns."""
    found = dict(record)
    if "hypothesis" in found:  # mnli ends it with a full stop, cb leaves it
        claim = str(found["hypothesis"]).strip()
        found["claim"] = claim if claim.endswith(".") else f"{claim}."
    if "start1" in found:
        found["word"] = str(found["sentence1"])[found["start1"] : found["end1"]]
    return found


def _glue(config: str, *columns: str) -> DataSet:
    return DataSet("nyu-mll/glue", "train", config, columns=(*columns, "label"), license="other")


def _super_glue(config: str, *columns: str) -> DataSet:
    return DataSet("aps/super_glue", "train", config, columns=(*columns, "label"))


def mnli() -> Task:
    """Return MNLI, scored on its matched validation split."""
    return Labelled(
        "mnli",
        "mnli",
        1,
        _glue("mnli", "premise", "hypothesis"),
        "{premise}\nQuestion: {claim} True, False or Neither?\nAnswer:",
        ("True", "Neither", "False"),
        "does a sentence follow from another",
        9815,
        split="validation_matched",
    ).task()


def mrpc() -> Task:
    """Return MRPC."""
    return Labelled(
        "mrpc",
        "mrpc",
        1,
        _glue("mrpc", "sentence1", "sentence2"),
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\n"
        "Question: Do both sentences mean the same thing?\nAnswer:",
        ("no", "yes"),
        "do two sentences of the news mean the same",
        408,
        others=("f1,none",),
    ).task()


def qqp() -> Task:
    """Return QQP."""
    return Labelled(
        "qqp",
        "qqp",
        2,
        _glue("qqp", "question1", "question2"),
        "Question 1: {question1}\nQuestion 2: {question2}\n"
        "Question: Do both questions ask the same thing?\nAnswer:",
        ("no", "yes"),
        "do two questions ask the same",
        40_430,
        others=("f1,none",),
    ).task()


def sst2() -> Task:
    """Return SST-2."""
    return Labelled(
        "sst2",
        "sst2",
        1,
        _glue("sst2", "sentence"),
        "{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:",
        ("negative", "positive"),
        "is a sentence about a film positive",
        872,
    ).task()


def rte() -> Task:
    """Return RTE."""
    return Labelled(
        "rte",
        "rte",
        1,
        _glue("rte", "sentence1", "sentence2"),
        "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:",
        ("True", "False"),
        "does a sentence follow from another",
        277,
    ).task()


def boolq() -> Task:
    """Return BoolQ."""
    return Labelled(
        "boolq",
        "boolq",
        2,
        DataSet(
            "aps/super_glue",
            "train",
            "boolq",
            columns=("question", "passage", "label"),
            license="CC BY-SA 3.0",
        ),
        "{passage}\nQuestion: {question}?\nAnswer:",
        ("no", "yes"),
        "yes or no, from a passage",
        3270,
    ).task()


def wic() -> Task:
    """Return WiC."""
    return Labelled(
        "wic",
        "wic",
        1,
        _super_glue("wic", "sentence1", "sentence2", "start1", "end1"),
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nQuestion: Is the word '{word}' used in "
        "the same way in the two sentences above?\nAnswer:",
        ("no", "yes"),
        "does a word mean the same in two sentences",
        638,
    ).task()


def cb() -> Task:
    """Return CommitmentBank."""
    return Labelled(
        "cb",
        "cb",
        1,
        _super_glue("cb", "premise", "hypothesis"),
        "{premise}\nQuestion: {hypothesis}. True, False, or Neither?\nAnswer:",
        ("True", "False", "Neither"),
        "is the writer committed to a clause",
        56,
    ).task()


def social_iqa() -> Task:
    """Return Social IQa, whose options differ by record."""
    data = DataSet(
        "lighteval/siqa",
        "train",
        columns=("context", "question", "answerA", "answerB", "answerC", "label"),
    )

    def row(record: Values) -> Values:
        return {**record, "answer": record[f"answer{'ABC'[int(record['label']) - 1]}"]}

    scored = Eval(
        id="social-iqa",
        version=0,
        config="social_iqa",
        metric="acc,none",
        chance=1 / 3,
        data={"validation": DataSet(data.id, "validation", columns=data.columns)},
        prepare=lambda record: {**record, "probe": f"{record['context']} {record['question']}"},
        num_items=1954,
        about="what people feel and do, three options",
    )
    template = Template("Q: {context} {question}\nA:", " {answer}")
    return learning("social-iqa", Source(data, template, row), (scored,), scored.about)


def piqa() -> Eval:
    """Return PIQA, as one of TRACE's general abilities."""
    data = DataSet("baber/piqa", "validation", columns=("goal", "sol1", "sol2", "label"))
    return Eval(
        id="piqa",
        version=1,
        config="piqa",
        metric="acc_norm,none",
        other_metrics=("acc,none",),
        chance=0.5,
        data={"validation": data},
        group="general",
        num_items=1838,
        about="which of two ways reaches an everyday aim",
    )
