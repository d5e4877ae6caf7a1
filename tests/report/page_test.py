"""The page: numbers, tables, and what is escaped in it."""

import math

import numpy as np
import pytest

from litevit_jax.report import page
from tests.report import examples

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;{{ 7*7 }}'


def render(*parts):
    return page.render("Title", "", [page.Section("a", "Alpha", parts)])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((None, "–"), (math.nan, "–"), (12345, "12,345"), (0.0, "0")),
        *((1.23456, "1.235"), (12345.678, "12,346"), (123456.7, "1.23e+05")),
        (0.00012345, "0.000123"),
    ],
)
def test_numbers_are_shown_to_four_digits(value, shown):
    assert page.rounded(value) == shown


def test_a_number_keeps_all_its_digits_beside_it():
    part = page.Table(["n"], [[page.Number(1 / 3, "result.json a/b last.top1")]])
    [number] = examples.Page(render(part)).numbers
    assert number == ["0.3333333333333333", "result.json a/b last.top1", "0.3333"]


def test_wide_tables_are_stacked_on_phones_and_narrow_ones_are_not():
    assert 'class="scroll flat"' in render(page.Table(["a", "b", "c"], [[1, 2, 3]]))
    wide = render(page.Table(["a", "b", "c", "d"], [[1, 2, 3, 4]]))
    assert 'class="scroll tall"' in wide
    assert examples.Page(wide).rows[1] == [[*"a1"], [*"b2"], [*"c3"], [*"d4"]]


def test_sections_without_content_are_left_out():
    sections = [
        page.Section("a", "Alpha", [page.Text("x")]),
        page.Section("b", "Beta", []),
    ]
    text = page.render("T", "", sections)
    assert text.count("Alpha") == 2 and "Beta" not in text
    assert examples.Page(text).ids == ["a"]


def test_whatever_a_page_is_given_is_escaped():
    number = page.Number(1.0, HOSTILE)
    parts = [
        page.Heading(HOSTILE, HOSTILE),
        page.Text(HOSTILE),
        page.Note(HOSTILE),
        page.Source(HOSTILE),
        page.Cards([(HOSTILE, HOSTILE), (HOSTILE, number)]),
        page.Table([HOSTILE, "b"], [[HOSTILE, number], [page.Field(HOSTILE), "x"]]),
        page.Folded(HOSTILE, page.Source(HOSTILE)),
        page.Figures(
            [
                page.Picture(HOSTILE, HOSTILE, HOSTILE, file=HOSTILE),
                page.Picture("b", HOSTILE, HOSTILE, "f", photo=HOSTILE, width=1),
            ]
        ),
    ]
    sections = [page.Section(HOSTILE, HOSTILE, parts)]
    text = page.render(HOSTILE, HOSTILE, sections)
    assert "<script" not in text and "<img src=x" not in text and "49" not in text
    assert text.count("&#34;&gt;&lt;script&gt;") == 32
    shown = examples.Page(text)  # which refuses scripts and tags that do not close
    assert shown.rows[1][0] == [HOSTILE, HOSTILE]
    assert shown.ids[0] == HOSTILE


def test_names_of_fields_break_after_dots_and_dashes():
    text = render(page.Table(["field"], [[page.Field("data.eval_split")]]))
    assert "data.<wbr>eval_<wbr>split" in text


def test_large_photographs_are_made_smaller():
    address, width = page.photograph(np.zeros((600, 2400, 3), np.uint8))
    assert address.startswith("data:image/jpeg;base64,") and width == 1200
    assert page.photograph(np.zeros((8, 16, 3), np.uint8))[1] == 16
