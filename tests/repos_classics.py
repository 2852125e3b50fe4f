"""The data sets of the classics for the local hub: real ids, files and columns, rows of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
from clbench_tasks import general
from local_hub import Repo, json_lines, parquet

Rows = list[dict[str, Any]]
Splits = Mapping[str, Rows]

PLACES = ("Oslo", "Lima", "Cairo", "Riga", "Quito", "Accra", "Turin", "Osaka")
OTHERS = ("Tunis", "Sofia", "Delhi", "Perth", "Hanoi", "Paris", "Tokyo", "Miami")  # evals ask of
THINGS = ("bridge", "market", "harbor", "library", "garden", "tower", "station", "museum")
LANGUAGES = {  # of TyDiQA, with the word for "one" in each
    "arabic": "واحد",
    "bengali": "এক",
    "english": "one",
    "finnish": "yksi",
    "indonesian": "satu",
    "korean": "하나",
    "russian": "один",
    "swahili": "moja",
    "telugu": "ఒకటి",
}
SCRIPT = b"# a loading script, which is never run\n"


def repos() -> dict[str, Repo]:
    """Return every repository that the classics read from the hub."""
    found = {
        "nyu-mll/glue": _configured(glue()),
        "aps/super_glue": _configured(super_glue()),
        "lighteval/siqa": _plain({"train": siqa(12), "validation": elsewhere(siqa(8))}),
        "derek-thomas/ScienceQA": _science(),
        "fancyzhx/ag_news": _plain(_by_class(4, text="text")),
        "fancyzhx/dbpedia_14": _configured({"dbpedia_14": _by_class(14, "title", text="content")}),
        "community-datasets/yahoo_answers_topics": _configured({"yahoo_answers_topics": yahoo()}),
        "Yelp/yelp_review_full": _configured({"yelp_review_full": _by_class(5, text="text")}),
        "stanfordnlp/imdb": _configured({"plain_text": _by_class(2, text="text")}),
        "SetFit/amazon_reviews_multi_en": {
            f"{split}.jsonl": json_lines(amazon(size))
            for split, size in {"train": 8, "validation": 2, "test": 4}.items()
        },
        "abisee/cnn_dailymail": _configured(
            {"3.0.0": {"train": cnn(10), "test": elsewhere(cnn(6))}}
        ),
        "wmt/wmt16": _configured({"de-en": wmt16()}),
        "cais/mmlu": _configured({"all": {"test": mmlu(), "dev": mmlu()[:2]}}),
        "baber/piqa": _plain({"train": piqa(8), "validation": piqa(6)}),
        "SaylorTwift/bbh": _configured({name: {"test": bbh(name)} for name in general.BBH}),
        "google-research-datasets/tydiqa": _configured(
            {"secondary_task": {"train": tydiqa(1), "validation": tydiqa(2)}}
        ),
        "EleutherAI/wikitext_document_level": {
            f"wikitext-2-raw-v1/wikitext-2-raw-v1-{split}.parquet": parquet(articles(size))
            for split, size in {"train": 3, "validation": 1, "test": 2}.items()
        },
        "openai/gsm8k": _configured({"main": {"train": gsm8k(10, 12), "test": gsm8k(90, 8)}}),
    }
    made = {f"datasets/{name}": Repo([files]) for name, files in found.items()}
    return made | {
        "datasets/lucasmccabe/logiqa": _scripted("logiqa", "default", logiqa()),
        "datasets/stanfordnlp/sentiment140": _scripted(
            "sentiment140", "sentiment140", sentiment140()
        ),
    }


def elsewhere(value: Any) -> Any:
    """Return the same of other places, so that no eval asks what a training row asks."""
    if isinstance(value, str):
        for place, other in zip(PLACES, OTHERS, strict=True):
            value = value.replace(place, other).replace(place.lower(), other.lower())
        return value
    if isinstance(value, dict):
        return {key: elsewhere(entry) for key, entry in value.items()}
    return [elsewhere(entry) for entry in value] if isinstance(value, list) else value


def _plain(splits: Splits) -> dict[str, bytes]:
    """Return a repository that `push_to_hub` made."""
    return {f"data/{split}-00000-of-00001.parquet": parquet(r) for split, r in splits.items()}


def _configured(configs: Mapping[str, Splits]) -> dict[str, bytes]:
    """Return a repository with a folder per configuration and a card that lists them."""
    card, files = ["---", "configs:"], {}
    for config, splits in configs.items():
        card += [f"- config_name: {json.dumps(config)}", "  data_files:"]
        for split, rows in splits.items():
            card += [f"  - split: {split}", f"    path: {config}/{split}-*"]
            files[f"{config}/{split}-00000-of-00001.parquet"] = parquet(rows)
    return {"README.md": "\n".join([*card, "---", ""]).encode(), **files}


def _scripted(name: str, config: str, splits: Splits) -> Repo:
    """Return a repository whose main branch is a script, beside the hub's conversion of it."""
    converted = {f"{config}/{split}/0000.parquet": parquet(rows) for split, rows in splits.items()}
    return Repo([converted, {f"{name}.py": SCRIPT}], tags={"refs/convert/parquet": 0})


def _by_class(classes: int, *others: str, text: str, each: int = 3) -> dict[str, Rows]:
    """Return rows sorted by class, as the published files are."""
    return {
        split: [
            {"label": label, text: f"The {THINGS[n]} of {PLACES[label % 8]} {label} {split}."}
            | {key: f"{PLACES[label % 8]} {n}" for key in others}
            for label in range(classes)
            for n in range(size)
        ]
        for split, size in {"train": each, "test": 2}.items()
    }


def glue() -> dict[str, dict[str, Rows]]:
    """Return the four sets of GLUE and RTE, hidden labels of tests left out."""
    claims = [
        {"premise": f"The {t} in {p} is open. ", "hypothesis": f"A {t} is closed", "label": n % 3}
        for n, (t, p) in enumerate(zip(THINGS, PLACES, strict=True))
    ]
    pairs = [
        {
            "sentence1": f"The {t} of {p} opened on Monday.",
            "sentence2": f"On Monday the {t} of {p} {'opened' if n % 2 else 'closed'}.",
            "label": n % 2,
        }
        for n, (t, p) in enumerate(zip(THINGS, PLACES, strict=True))
    ]
    asked = [
        {
            "question1": f"Where is {p}?",
            "question2": f"In which country is {PLACES[n] if n % 2 else 'it'}?",
            "label": n % 2,
        }
        for n, p in enumerate(PLACES)
    ]
    films = [
        {
            "sentence": f"a {'dull' if n % 2 == 0 else 'bright'} film about a {t} in {p} ",
            "label": n % 2,
        }
        for n, (t, p) in enumerate(zip(THINGS, PLACES, strict=True))
    ]
    return {
        "mnli": {
            "train": _numbered(claims),
            "validation_matched": _numbered(elsewhere(claims[:6])),
        },
        "mrpc": {"train": _numbered(pairs), "validation": _numbered(elsewhere(pairs[:6]))},
        "qqp": {"train": _numbered(asked), "validation": _numbered(elsewhere(asked[:6]))},
        "sst2": {"train": _numbered(films), "validation": _numbered(elsewhere(films[:6]))},
        "rte": {"train": _numbered(pairs), "validation": _numbered(elsewhere(pairs[2:8]))},
    }


def super_glue() -> dict[str, dict[str, Rows]]:
    """Return the five sets of SuperGLUE that the long sequence has."""
    boolq = [
        {
            "question": f"is there a {t} in {p.lower()}",
            "passage": f"{p} -- {p} has {'a' if n % 2 else 'no'} {t}.",
            "label": n % 2,
        }
        for n, (t, p) in enumerate(zip(THINGS, PLACES, strict=True))
    ]
    cb = [
        {
            "premise": f"B: I think the {t} in {PLACES[n]} is old.",
            "hypothesis": f"the {t} is old",
            "label": n % 3,
        }
        for n, t in enumerate(THINGS)
    ]
    copa = [
        {
            "premise": f"The {t} in {PLACES[n]} was closed.",
            "choice1": "The visitors went home.",
            "choice2": "It was being repaired.",
            "question": ("effect", "cause")[n % 2],
            "label": n % 2,
        }
        for n, t in enumerate(THINGS)
    ]
    multirc = [
        {
            "paragraph": f"The {t} is in {p}. It is old.",
            "question": f"Where is the {t}?",
            "answer": p if n % 2 else "Nowhere",
            "label": n % 2,
        }
        for n, (t, p) in enumerate(zip(THINGS, PLACES, strict=True))
    ]
    wic = [
        {
            "word": "bank",
            "sentence1": f"The bank of {p} is closed.",
            "sentence2": "They sat on the bank of the river.",
            "start1": 4,
            "start2": 16,
            "end1": 8,
            "end2": 20,
            "label": n % 2,
        }
        for n, p in enumerate(PLACES)
    ]
    named = {"boolq": boolq, "cb": cb, "copa": copa, "multirc": multirc, "wic": wic}
    return {
        name: {"train": _numbered(rows), "validation": _numbered(elsewhere(rows[:6]))}
        for name, rows in named.items()
    }


def _numbered(rows: Rows) -> Rows:
    return [{**row, "idx": n} for n, row in enumerate(rows)]


def siqa(size: int) -> Rows:
    """Return what people do, three options each."""
    return [
        {
            "context": f"Kim went to the {THINGS[n % 8]} of {PLACES[n % 8]} with {n} friends.",
            "question": "What will Kim do next?",
            "answerA": "look around",
            "answerB": "fall asleep",
            "answerC": "build a boat",
            "label": str(n % 3 + 1),
        }
        for n in range(size)
    ]


def _science() -> dict[str, bytes]:
    """Return ScienceQA with its pictures, which have to stay unread: these are none."""
    features = {
        "image": {"_type": "Image"},
        "choices": {"_type": "List", "feature": {"dtype": "string", "_type": "Value"}},
        **{
            name: {"dtype": kind, "_type": "Value"}
            for name, kind in {"question": "string", "answer": "int8", "hint": "string"}.items()
        },
    }
    picture = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    schema = pyarrow.schema(
        [
            ("image", picture),
            ("question", pyarrow.string()),
            ("choices", pyarrow.list_(pyarrow.string())),
            ("answer", pyarrow.int8()),
            ("hint", pyarrow.string()),
        ],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    return {
        f"data/{split}-00000-of-00001-{'0' * 16}.parquet": parquet(
            science(size) if split == "train" else elsewhere(science(size)), schema
        )
        for split, size in {"train": 12, "validation": 4, "test": 9}.items()
    }


def science(size: int) -> Rows:
    """Return questions with two or three options; every third shows a picture."""
    return [
        {
            "image": {"bytes": b"no picture", "path": None} if n % 3 == 2 else None,
            "question": f"Which of these is alive in {PLACES[n % 8]}?",
            "choices": ["a stone", "an old tree", "a spoon"][: 2 + n % 2],
            "answer": 1,
            "hint": "Trees grow." if n % 2 else "",
        }
        for n in range(size)
    ]


def logiqa() -> dict[str, Rows]:
    """Return passages with four options, in the columns of the converted copy."""
    rows = [
        {
            "context": f"All {t}s in {p} are old. This is a {t} in {p}.",
            "query": "Which of the following must be true?",
            "options": ["It is new.", "It is old.", "It is far away.", "Nothing is known."],
            "correct_option": 1,
        }
        for t, p in zip(THINGS, PLACES, strict=True)
    ]
    return {"train": rows, "validation": rows[:2], "test": elsewhere(rows[2:])}


def yahoo() -> dict[str, Rows]:
    """Return questions sorted by topic, some without a text below the title."""
    return {
        split: [
            {
                "id": topic * 10 + n,
                "topic": topic,
                "question_title": f"What is the {THINGS[n]} of {PLACES[topic % 8]} {topic}?",
                "question_content": "" if n else f"I saw it in the {split}.",
                "best_answer": f"It is number {topic}.",
            }
            for topic in range(10)
            for n in range(size)
        ]
        for split, size in {"train": 3, "test": 2}.items()
    }


def amazon(each: int) -> Rows:
    """Return reviews in five steps, mixed."""
    words = ("awful", "bad", "usable", "good", "splendid")
    return [
        {
            "id": f"en_{n}_{stars}",
            "text": "Long story. " * 200 * (n == 0) + f"This {THINGS[n]} of {each} is {word}.",
            "label": stars,
            "label_text": str(stars),
        }
        for n in range(each)
        for stars, word in enumerate(words)
    ]


def sentiment140() -> dict[str, Rows]:
    """Return tweets: the train split sorted and without neutral ones, as the real one is."""

    def tweet(at: int, sentiment: int, day: str) -> dict[str, Any]:
        word = {0: "miss", 2: "see", 4: "love"}[sentiment]
        return {
            "text": f"@kim i {word} the {THINGS[at % 8]} {at} on {day}",
            "date": "Mon Apr 06 22:19:45 PDT 2009",
            "user": f"user{at}",
            "sentiment": sentiment,
            "query": "NO_QUERY",
        }

    return {
        "train": [tweet(at, 4 * (at // 12), "Monday") for at in range(24)],
        "test": [tweet(at, (0, 2, 4)[at % 3], "Friday") for at in range(9)],
    }


def cnn(size: int) -> Rows:
    """Return short news with two highlights each."""
    return [
        {
            "article": f"({PLACES[n % 8]}) The {THINGS[n % 8]} number {n} was opened on Monday. "
            "Hundreds of people came to see it. The mayor gave a speech.",
            "highlights": f"{THINGS[n % 8].title()} number {n} opened on Monday .\n"
            "Hundreds of people came .",
            "id": f"{n:040x}",
        }
        for n in range(size)
    ]


def wmt16() -> dict[str, Rows]:
    """Return sentences in two languages."""
    rows = [
        {"translation": {"de": f"Das ist {p}, Nummer {n}.", "en": f"This is {p}, number {n}."}}
        for n, p in enumerate(PLACES)
    ]
    return {"train": rows, "validation": rows[:2], "test": elsewhere(rows[2:])}


def mmlu() -> Rows:
    """Return questions of two subjects."""
    return [
        {
            "question": f" Which of these is a city in the {n}th row?",
            "subject": ("abstract_algebra", "anatomy")[n % 2],
            "choices": ["spoon", "stone", p, "river"],
            "answer": 2,
        }
        for n, p in enumerate(PLACES)
    ]


def piqa(size: int) -> Rows:
    """Return everyday aims, two ways each."""
    return [
        {
            "goal": f"To see the {THINGS[n]}",
            "sol1": f"walk to the {THINGS[n]} and look",
            "sol2": "stay at home and sleep",
            "label": 0,
        }
        for n in range(size)
    ]


def articles(size: int) -> Rows:
    """Return articles as WikiText writes them, one of them longer than a window."""
    return [
        {"page": f" = {t} of {p} = \n\n The {t} , in {p} , is old . \n " * (1 if n else 400)}
        for n, (t, p) in enumerate(zip(THINGS[:size], PLACES, strict=False))
    ]


def bbh(name: str) -> Rows:
    """Return questions of one of the 27 kinds: some with options, some whose answer is a word."""
    return [
        {
            "input": f"Which of these is {name.replace('_', ' ')} in {p}?\n(A) {t}\n(B) {p}",
            "target": ("(B)", "True", p)[n % 3],
        }
        for n, (t, p) in enumerate(zip(THINGS[:2], PLACES, strict=False))
    ]


def tydiqa(size: int) -> Rows:
    """Return passages with a question each in each language of the set."""
    return [
        {
            "id": f"{language}--{n}-0",
            "title": PLACES[n],
            "context": f"{answer} {THINGS[n]} {PLACES[n]}.",
            "question": f"{THINGS[n]} {PLACES[n]} ({language})?",
            "answers": {"text": [answer], "answer_start": [0]},
        }
        for language, answer in LANGUAGES.items()
        for n in range(size)
    ]


def gsm8k(start: int, size: int) -> Rows:
    """Return word problems whose answers end in `#### number`."""
    return [
        {
            "question": f"A box holds {start + n} coins. Two boxes hold how many?",
            "answer": f"Two boxes hold 2*{start + n} = {2 * (start + n)} coins.\n"
            f"#### {2 * (start + n)}",
        }
        for n in range(size)
    ]


def write_trace(root: Path) -> Path:
    """Write TRACE as it is published, and the two sets that I-LoRA adds, in its layout."""
    for folder, rows in trace().items():
        (root / folder).mkdir(parents=True)
        for split, part in {"train": rows, "eval": rows[:2], "test": elsewhere(rows[2:])}.items():
            text = json.dumps(part, ensure_ascii=False)
            (root / folder / f"{split}.json").write_text(text, encoding="utf-8")
    return root


def trace() -> dict[str, Rows]:
    """Return the rows of each folder."""
    return {
        "C-STANCE": _asked("文本:{p}的{t}很好。\n对象:{t}\n态度:", lambda n: "ABC"[n % 3]),
        "FOMC": _asked("Text: Prices in {p} rise near the {t}.\nStance:", lambda n: "ABC"[n % 3]),
        "MeetingBank": _asked(
            "Write a summary.\nTranscript: We open the {t} of {p}.\nSummary:",
            lambda n: f"A motion to open the {THINGS[n]} of {PLACES[n]}. Adopted.",
        ),
        "Py150": _asked(
            "<s> import {t} <EOL> if {p} : <EOL>",
            lambda n: f"return {THINGS[n]} ( <STR_LIT> , <NUM_LIT:{n}> , '<STR_LIT:{PLACES[n]}>' )",
        ),
        "ScienceQA": _asked(
            "Question: Which is a city?\nChoices:\nA. the {t}\nB. {p}\n",
            lambda n: f"B\nBecause {PLACES[n]} is one.",
        ),
        "NumGLUE-cm": _asked("Question: A {t} has 4 legs in {p}.\nAnswer:", lambda n: str(4 + n)),
        "NumGLUE-ds": _asked("Question: The {t} of {p} weighs.\nAnswer:", lambda n: f"{n}.5"),
        "20Minuten": _asked(
            "Vereinfache.\nDie {t} in {p} wurde nach langer Zeit wieder eröffnet.\nAntwort:",
            lambda n: f"Die {THINGS[n]} in {PLACES[n]} ist wieder offen.",
        ),
        "medmcqa": _asked("Question: {t} of {p}?\nA. yes\nB. no\nAnswer:", lambda n: "AB"[n % 2]),
        "jecqa": _asked("{p}的{t}?\nA. 是\nB. 否\n答案:", lambda n: ("A", "AB")[n % 2]),
    }


def _asked(prompt: str, answer: Any) -> Rows:
    return [
        {"prompt": prompt.format(t=t, p=p), "answer": answer(n)}
        for n, (t, p) in enumerate(zip(THINGS, PLACES, strict=True))
    ]
