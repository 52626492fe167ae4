"""Writes litseq's demo corpus: the same values, said in four languages by Babel from Unicode CLDR.

    python scripts/make_demo.py            writes the files of src/litseq/data/demo_corpus
    python scripts/make_demo.py --check    says whether they are what this script generates

A phrase is drawn once, as a value, and then said in each locale, so it means the same in all. How
it is said depends on the CLDR version, which is why the corpus is frozen and not made at run time.
"""

from __future__ import annotations

import argparse
import gzip
import io
import itertools
import logging
import math
import random
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Literal

import babel
from babel import dates, lists, numbers
from babel.core import Locale, get_global

logger = logging.getLogger("make_demo")

CORPUS = Path(__file__).resolve().parents[1] / "src" / "litseq" / "data" / "demo_corpus"
BABEL_VERSION, CLDR_VERSION = "2.18.0", "47"
SEED = 2017
# The test set is drawn first: it is a plain sample of the phrases, and training gets what is left.
SPLITS = {"test": 1_000, "val": 500, "train": 12_500}
LOCALES = {
    "en": Locale.parse("en"),
    "de": Locale.parse("de"),
    "fr": Locale.parse("fr"),
    "zh": Locale.parse("zh_Hans"),
}

DateStyle = Literal["long", "full"]
ListStyle = Literal["standard", "or", "unit", "unit-short"]
Unit = Literal["second", "minute", "hour", "day", "week", "month", "year"]
Say = Callable[[Locale], str]  # says one value in a locale
Draw = Callable[[random.Random], Say]  # draws a value

# What is well known, under a name that nobody disputes, and that means nothing else in the corpus.
TERRITORIES = """
    AE AF AR AT AU BD BE BG BR CA CH CL CN CO CR CU CZ DE DK DZ EC EE EG ES ET FI FR GB GH GR HR
    HU ID IE IN IQ IR IS IT JM JO JP KE KR KZ LK LT LU LV LY MA MG MN MX MY NG NL NO NP NZ PA PE
    PH PK PL PT QA RO RU SA SE SG SI SK TH TN TR TZ UA UG US VE VN ZA ZW
""".split()
CITIES = """
    Africa/Accra Africa/Addis_Ababa Africa/Algiers Africa/Cairo Africa/Casablanca Africa/Dakar
    Africa/Johannesburg Africa/Lagos Africa/Nairobi America/Bogota America/Caracas America/Chicago
    America/Denver America/Havana America/Lima America/Los_Angeles America/Mexico_City
    America/Montevideo America/New_York America/Santiago America/Sao_Paulo America/Toronto
    America/Vancouver Asia/Baghdad Asia/Bangkok Asia/Dubai Asia/Jakarta Asia/Karachi Asia/Manila
    Asia/Riyadh Asia/Seoul Asia/Shanghai Asia/Tashkent Asia/Tehran Asia/Tokyo Australia/Melbourne
    Australia/Perth Australia/Sydney Europe/Amsterdam Europe/Athens Europe/Belgrade Europe/Berlin
    Europe/Brussels Europe/Bucharest Europe/Budapest Europe/Copenhagen Europe/Dublin
    Europe/Helsinki Europe/Istanbul Europe/Lisbon Europe/London Europe/Madrid Europe/Moscow
    Europe/Oslo Europe/Paris Europe/Prague Europe/Rome Europe/Sofia Europe/Stockholm Europe/Vienna
    Europe/Warsaw Europe/Zurich Pacific/Auckland Pacific/Honolulu
""".split()
LANGUAGES = """
    af ar be bg bn cs cy da de el en es et eu fa fi fr ga he hi hr hu hy id is it ja ka kk km ko
    la lt lv mn ms nl no pl pt ro ru sk sl sq sr sv sw ta th tr uk ur uz vi yo zh zu
""".split()
CURRENCIES = """
    AUD BRL CAD CHF CLP COP CZK DKK EGP EUR GBP HUF IDR INR ISK JPY KES KRW MAD MXN MYR NGN NOK
    NZD PEN PHP PKR PLN RUB SEK SGD THB UAH USD VND ZAR
""".split()
SIGNS = "AUD BRL CAD CNY EUR GBP INR JPY MXN NZD USD".split()  # those that English writes as a sign
ZONES = """
    Africa_Eastern Africa_Southern Africa_Western Alaska America_Central America_Eastern
    America_Mountain America_Pacific Arabian Argentina Atlantic Australia_Eastern
    Australia_Western Brasilia Chile China Colombia Europe_Central Europe_Eastern Europe_Western
    GMT Gulf India Indochina Iran Japan Korea Moscow New_Zealand Pakistan Peru Philippines
    Singapore
""".split()
MEASURES = """
    angle-degree area-hectare area-square-foot area-square-kilometer area-square-meter
    area-square-mile digital-gigabyte digital-kilobyte digital-megabyte digital-terabyte
    duration-century duration-day duration-hour duration-millisecond duration-minute
    duration-month duration-night duration-second duration-week duration-year electric-ampere
    electric-ohm electric-volt energy-calorie energy-joule energy-kilowatt-hour force-newton
    frequency-hertz frequency-megahertz graphics-megapixel graphics-pixel length-centimeter
    length-foot length-inch length-kilometer length-light-year length-meter length-mile
    length-millimeter length-nautical-mile length-yard mass-gram mass-kilogram mass-milligram
    mass-ounce mass-pound mass-tonne power-horsepower power-kilowatt power-megawatt power-watt
    pressure-hectopascal pressure-millibar temperature-celsius temperature-fahrenheit
    volume-barrel volume-centiliter volume-cubic-centimeter volume-cubic-meter volume-gallon
    volume-liter volume-milliliter volume-pint volume-tablespoon volume-teaspoon
""".split()
SPEEDS = """
    consumption-liter-per-100-kilometer consumption-mile-per-gallon speed-kilometer-per-hour
    speed-knot speed-meter-per-second speed-mile-per-hour
""".split()
FLOWING = "digital-gigabyte digital-megabyte volume-cubic-meter volume-gallon volume-liter".split()
FLOWING_PER = "duration-day duration-hour duration-minute duration-second".split()
PRICED_PER = """
    area-square-kilometer area-square-meter duration-day duration-hour duration-minute
    duration-month duration-night duration-week duration-year length-kilometer length-meter
    mass-gram mass-kilogram mass-ounce mass-pound volume-cubic-meter volume-gallon volume-liter
""".split()
DATE_STYLES: tuple[DateStyle, ...] = ("long", "full")  # without and with the weekday
DURATIONS = (  # two units that go together, and the most there can be of the smaller
    ("duration-year", "duration-month", 11),
    ("duration-month", "duration-day", 29),
    ("duration-week", "duration-day", 6),
    ("duration-day", "duration-hour", 23),
    ("duration-hour", "duration-minute", 59),
    ("duration-minute", "duration-second", 59),
)
SECONDS: dict[Unit, int] = {
    "second": 1,
    "minute": 60,
    "hour": 3_600,
    "day": 86_400,
    "week": 604_800,
    "month": 2_592_000,
    "year": 31_536_000,
}


# Values


def a_whole_number(rng: random.Random) -> Decimal:
    """Two digits mostly, else up to 9,990; never 1."""
    kind = rng.random()
    if kind < 0.7:
        return Decimal(rng.randint(2, 99))
    return Decimal(rng.randint(100, 999)) * (1 if kind < 0.9 else 10)


def a_number(rng: random.Random) -> Decimal:
    """A whole number, or one with a decimal up to 99.9."""
    return a_whole_number(rng) if rng.random() < 0.85 else Decimal(rng.randint(11, 999)) / 10


def a_moment(rng: random.Random) -> datetime:
    """A minute of the years 1900 to 2099.

    First days of a month are left out: CLDR says "1 mai" in French, where "1er mai" is right.
    """
    minutes = (datetime(2100, 1, 1) - datetime(1900, 1, 1)) // timedelta(minutes=1)
    moment = datetime(1900, 1, 1) + timedelta(minutes=rng.randrange(minutes))
    return moment if moment.day > 1 else a_moment(rng)


def a_later_moment(rng: random.Random, start: datetime, *, max_days: int) -> datetime:
    """A minute after ``start``: as often within three weeks as within ``max_days``."""
    days = rng.choice((rng.randint(1, 20), rng.randint(40, max_days)))
    end = start + timedelta(days=days, minutes=rng.randrange(24 * 60))
    return end if end.day > 1 else a_later_moment(rng, start, max_days=max_days)


# What Babel does not say by itself


def plain_spaces(text: str) -> str:
    """Turns every kind of space into U+0020.

    CLDR sets no-break, narrow and thin spaces ("12,5 %", "3:24 PM"). SentencePiece's default
    normalisation drops the difference, so no model could write such a line exactly.
    """
    return "".join(" " if unicodedata.category(c) == "Zs" else c for c in text)


def hour_cycle(locale: Locale, skeleton: str) -> str:
    """The skeleton with the hour as the locale's own short time has it: AM and PM, or 24 hours."""
    return skeleton if "a" in locale.time_formats["short"].pattern else skeleton.replace("h", "H")


def unit_pattern(locale: Locale, unit: str, form: str) -> str:
    """The long pattern of a unit, or the short one where CLDR lets the long one inherit it.

    ``babel.units.format_unit`` does not follow that inheritance: it prints the bare unit id.
    """
    patterns = locale._data["unit_patterns"][unit]
    length = next(n for n in ("long", "short") if form in patterns.get(n, {}))
    return str(patterns[length][form])


def quantity(unit: str, number: Decimal) -> Say:
    """A number of a unit."""
    return lambda locale: unit_pattern(locale, unit, locale.plural_form(number)).format(
        numbers.format_decimal(number, locale=locale)
    )


def per(amount: Say, unit: str) -> Say:
    """An amount for each one of a unit."""
    return lambda locale: unit_pattern(locale, unit, "per").format(amount(locale))


# Names


def territory(rng: random.Random) -> Say:
    """Switzerland."""
    code = rng.choice(TERRITORIES)
    return lambda locale: locale.territories[code]


def city(rng: random.Random) -> Say:
    """Athens."""
    zone = rng.choice(CITIES)
    own_name = zone.rpartition("/")[2].replace("_", " ")  # which CLDR leaves out if it is the name
    return lambda locale: locale.time_zones.get(zone, {}).get("city", own_name)


def language(rng: random.Random) -> Say:
    """Swedish."""
    code = rng.choice(LANGUAGES)
    return lambda locale: locale.languages[code]


# Times that need no comma, so that they can stand in a series


def month_day(rng: random.Random) -> Say:
    """October 6."""
    day = a_moment(rng)
    return lambda locale: dates.format_skeleton("MMMMd", day, locale=locale)


def numeric_date(rng: random.Random) -> Say:
    """10/6/2018."""
    day = a_moment(rng)
    return lambda locale: dates.format_skeleton("yMd", day, locale=locale)


def period(rng: random.Random) -> Say:
    """October 2018, or 4th quarter 2018."""
    day, skeleton = a_moment(rng), rng.choice(("yMMMM", "yQQQQ"))
    return lambda locale: dates.format_skeleton(skeleton, day, locale=locale)


def week(rng: random.Random) -> Say:
    """Week 40 of 2018."""
    # Filled in here, not from a day: the weeks of a year are counted differently in the locales.
    fields = {"w": str(rng.randint(1, 52)), "Y": str(rng.randint(1900, 2099))}

    def say(locale: Locale) -> str:
        parts = dates.tokenize_pattern(locale.datetime_skeletons["yw"].pattern)
        return "".join(
            fields.get(part[0], "") if kind == "field" else str(part) for kind, part in parts
        )

    return say


def clock(rng: random.Random) -> Say:
    """3:24 PM, or Sat 3:24 PM."""
    moment, skeleton = a_moment(rng), rng.choice(("hm", "Ehm"))
    return lambda locale: dates.format_skeleton(hour_cycle(locale, skeleton), moment, locale=locale)


def clock_span(rng: random.Random) -> Say:
    """3:24 - 7:45 PM."""
    start, end = (
        datetime(2000, 1, 2) + timedelta(minutes=minute)
        for minute in sorted(rng.sample(range(24 * 60), 2))
    )
    return lambda locale: dates.format_interval(start, end, hour_cycle(locale, "hm"), locale=locale)


def relative(rng: random.Random) -> Say:
    """9 weeks ago, or in 9 weeks."""
    unit = rng.choice(tuple(SECONDS))
    delta = timedelta(seconds=rng.choice((-1, 1)) * rng.randint(2, 60) * SECONDS[unit])
    return lambda locale: dates.format_timedelta(
        delta, granularity=unit, threshold=math.inf, add_direction=True, locale=locale
    )


# Amounts


def measure(rng: random.Random) -> Say:
    """76.5 square miles."""
    return quantity(rng.choice(MEASURES), a_number(rng))


def speed(rng: random.Random) -> Say:
    """76 miles per hour."""
    return quantity(rng.choice(SPEEDS), a_number(rng))


def flow(rng: random.Random) -> Say:
    """76 liters per second."""
    return per(quantity(rng.choice(FLOWING), a_number(rng)), rng.choice(FLOWING_PER))


def money(rng: random.Random) -> Say:
    """76 Swiss francs, or $76.50."""
    if rng.random() < 0.5:
        name, number = rng.choice(CURRENCIES), a_whole_number(rng)
        return lambda locale: numbers.format_currency(
            number, name, locale=locale, format_type="name", currency_digits=False
        )
    sign = rng.choice(SIGNS)
    price = rng.randint(200, 99_999) * Decimal(10) ** -numbers.get_currency_precision(sign)
    return lambda locale: numbers.format_currency(price, sign, locale=locale)


def rate(rng: random.Random) -> Say:
    """$76.50 per night."""
    return per(money(rng), rng.choice(PRICED_PER))


def percentage(rng: random.Random) -> Say:
    """76.5%."""
    share = Decimal(rng.randint(2, 999)) / 1_000
    return lambda locale: numbers.format_percent(share, locale=locale, decimal_quantization=False)


# Longer phrases


def short_time(locale: Locale, moment: datetime) -> str:
    """3:24 PM."""
    return dates.format_time(moment, "short", locale=locale)


def date_with(locale: Locale, moment: datetime, *, style: DateStyle, time: str) -> str:
    """The date of a moment and the text of its time, in the order of the locale."""
    day = dates.format_date(moment, style, locale)
    return str(locale.datetime_formats[style].format(time, day))


def date(rng: random.Random) -> Say:
    """October 6, 2018, or Saturday, October 6, 2018."""
    day, style = a_moment(rng), rng.choice(DATE_STYLES)
    return lambda locale: dates.format_date(day, style, locale)


def date_time(rng: random.Random) -> Say:
    """Saturday, October 6, 2018, 3:24 PM."""
    moment, style = a_moment(rng), rng.choice(DATE_STYLES)
    return lambda locale: date_with(locale, moment, style=style, time=short_time(locale, moment))


def zoned_date_time(rng: random.Random) -> Say:
    """Saturday, October 6, 2018, 3:24 PM Moscow Standard Time."""
    moment, style, zone = a_moment(rng), rng.choice(DATE_STYLES), rng.choice(ZONES)

    def say(locale: Locale) -> str:
        pattern = locale.datetime_skeletons[hour_cycle(locale, "hmv")].pattern
        name = locale.meta_zones[zone]["long"]["standard"].replace("'", "''")
        time = dates.format_time(moment, pattern.replace("v", f"'{name}'"), locale=locale)
        return date_with(locale, moment, style=style, time=time)

    return say


def date_span(rng: random.Random) -> Say:
    """Oct 6 - 9, 2018, or Sat, Oct 6 - Tue, Oct 9, 2018, or October 2018 - February 2019."""
    skeleton, max_days = rng.choice((("yMMMd", 300), ("yMMMEd", 300), ("yMMMM", 1_000)))
    start = a_moment(rng)
    end = a_later_moment(rng, start, max_days=max_days)
    return lambda locale: dates.format_interval(start, end, skeleton, locale=locale)


def date_time_span(rng: random.Random) -> Say:
    """October 6, 2018, 3:24 PM - October 9, 2018, 7:45 PM."""
    start = a_moment(rng)
    ends = start, a_later_moment(rng, start, max_days=60)

    def say(locale: Locale) -> str:
        said = (date_with(locale, end, style="long", time=short_time(locale, end)) for end in ends)
        return str(locale.interval_formats[None].format(*said))  # CLDR's fallback for all spans

    return say


def duration(rng: random.Random) -> Say:
    """3 hours, 24 minutes."""
    large, small, most = rng.choice(DURATIONS)
    number, rest = Decimal(rng.randint(2, 40)), Decimal(rng.randint(2, most))
    parts = quantity(large, number), quantity(small, rest)

    def say(locale: Locale) -> str:
        # Babel lacks the inherited lists of units; for two parts these are what CLDR inherits.
        styles: tuple[ListStyle, ...] = ("unit", "unit-short", "standard")
        style = next(s for s in styles if s in locale.list_patterns)
        return lists.format_list([part(locale) for part in parts], style=style, locale=locale)

    return say


def series(rng: random.Random, draws: Sequence[Draw]) -> Say:
    """What each of ``draws`` gives, joined by "and" or, less often, by "or"."""
    style: ListStyle = rng.choice(("standard", "standard", "or"))
    items = [draw(rng) for draw in draws]
    if len({item(LOCALES["en"]) for item in items}) < len(items):
        return series(rng, draws)
    return lambda locale: lists.format_list([i(locale) for i in items], style=style, locale=locale)


def names(rng: random.Random) -> Say:
    """Brazil, Sweden, and New Zealand; names are of one kind."""
    return series(rng, [rng.choice(NAMES)] * rng.randint(3, 6))


def times(rng: random.Random) -> Say:
    """9 weeks ago, October 6, or 3:24 PM."""
    return series(rng, rng.choices(TIMES, k=rng.randint(2, 4)))


def amounts(rng: random.Random) -> Say:
    """$76.50 per night, 12.5%, and 76 miles per hour."""
    return series(rng, rng.choices(AMOUNTS, k=rng.randint(2, 4)))


def entry(rng: random.Random) -> Say:
    """Athens, October 6, and 76 miles per hour."""
    return series(rng, [rng.choice(group) for group in (NAMES, TIMES, AMOUNTS)])


NAMES: tuple[Draw, ...] = (territory, city, language)
TIMES: tuple[Draw, ...] = (
    month_day, numeric_date, period, week, clock, clock_span, relative
)  # fmt: skip
AMOUNTS: tuple[Draw, ...] = (
    measure, measure, speed, flow, money, money, rate, percentage
)  # fmt: skip
PHRASES: dict[Draw, int] = {  # what is drawn, and how often in a hundred
    date: 5, numeric_date: 2, date_time: 8, zoned_date_time: 11, date_span: 11, date_time_span: 7,
    clock_span: 2, period: 1, week: 1, relative: 1, duration: 4,
    measure: 3, speed: 3, flow: 3, money: 3, rate: 6,
    names: 9, times: 9, amounts: 11,
    entry: 10,
}  # fmt: skip


# The corpus


def generate(seed: int = SEED) -> Iterator[tuple[str, ...]]:
    """Yields phrases without end: a text per locale, which no other and no earlier one repeats."""
    rng = random.Random(seed)
    seen: tuple[set[str], ...] = tuple(set() for _ in LOCALES)
    while True:
        (phrase,) = rng.choices(tuple(PHRASES), tuple(PHRASES.values()))
        say = phrase(rng)
        texts = tuple(plain_spaces(say(locale)) for locale in LOCALES.values())
        copied = len(set(texts)) < len(texts)  # as "£9.50" is, from English to Chinese
        if copied or any(text in before for text, before in zip(texts, seen, strict=True)):
            continue
        for text, before in zip(texts, seen, strict=True):
            before.add(text)
        yield texts


def make_files() -> dict[str, str]:
    """The whole corpus: the text of each file, without its ".gz", under the file's name."""
    phrases = generate()
    files = {}
    for split, size in SPLITS.items():
        columns = zip(*itertools.islice(phrases, size), strict=True)
        for name, texts in zip(LOCALES, columns, strict=True):
            files[f"{split}.{name}.gz"] = "".join(f"{text}\n" for text in texts)
    return files


def compress(text: str) -> bytes:
    """Gzip with neither file name nor time, so that the same text gives the same bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        file.write(text.encode())
    return buffer.getvalue()


def holds(path: Path, text: str) -> bool:
    """Whether a gzip file holds a text.

    Texts are compared and not bytes, since another zlib may compress the same text differently.
    """
    return path.is_file() and gzip.decompress(path.read_bytes()) == text.encode()


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Writes litseq's demo corpus.")
    parser.add_argument("--check", action="store_true", help="compare the files, and write nothing")
    check: bool = parser.parse_args().check
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    found = babel.__version__, get_global("cldr")["version"]
    if found != (BABEL_VERSION, CLDR_VERSION):
        sys.exit(
            f"the corpus is Babel {BABEL_VERSION} with CLDR {CLDR_VERSION}, found Babel {found[0]} "
            f"with CLDR {found[1]}; run pip install Babel=={BABEL_VERSION}."
        )
    files = make_files()
    if check:
        other = [name for name, text in files.items() if not holds(CORPUS / name, text)]
        if other:
            sys.exit(f"other text in {', '.join(other)}; run python scripts/make_demo.py.")
        logger.info("%d files of %s are what this script generates.", len(files), CORPUS.name)
    else:
        for name, text in files.items():
            (CORPUS / name).write_bytes(compress(text))
        logger.info("wrote %d files to %s", len(files), CORPUS)


if __name__ == "__main__":
    main()
