"""Pixel CSV files: exact values of valid files, and the line of each error."""

from pathlib import Path

import numpy as np
import pytest

from imgclf.data.pixel_csv import read_pixel_csv
from imgclf.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
HEADER = "label,p1,p2,p3,p4"
ROWS = ["3,0,1,2,255", "10,9,8,7,6"]
GREY = np.array([[0, 1, 2, 255], [9, 8, 7, 6]], np.uint8).reshape(2, 2, 2, 1)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "pixels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("\n".join([HEADER, *ROWS]), [2, 3]),
        ("\n".join(ROWS) + "\n", [1, 2]),
        ("\r\n".join([HEADER, *ROWS]) + "\r\n", [2, 3]),
        ("\r".join([HEADER, *ROWS]) + "\r", [2, 3]),
        ("\ufeff" + "\n".join([HEADER, *ROWS]) + "\n\n \n,,,,\n\n", [2, 3]),
        ("\ufeff" + "\n".join(ROWS), [1, 2]),
        ('"label","p1","p2","p3","p4"\n"3","0","1","2","255"\n"10","9","8","7","6"\n', [2, 3]),
        ("\n".join([HEADER, ROWS[0], "", ROWS[1]]), [2, 4]),
        ("\n".join(["", HEADER, *ROWS]), [3, 4]),
        ("label,0,1,2,3\n" + "\n".join(ROWS), [2, 3]),
        ("label,p,p,p,p\n 3 , 0, 1 ,2,255\n010,09,+8,007,6\n", [2, 3]),
        ("a,b,c,Label,d\n0,1,2,3,255\n9,8,7,10,6\n", [2, 3]),
        ("a,b,c,d,LABEL\n0,1,2,255,3.0\n9,8,7,6,10\n", [2, 3]),
    ],
)
def test_every_spelling_of_two_rows_gives_the_same_table(tmp_path: Path, text: str, lines: list[int]) -> None:
    table = read_pixel_csv(write(tmp_path, text))
    assert table.pixels.dtype == np.uint8 and table.pixels.flags.c_contiguous
    np.testing.assert_array_equal(table.pixels, GREY)
    assert table.labels == ["3", "10"]
    assert table.lines.dtype == np.int64 and table.lines.tolist() == lines


def test_rgb_pixels_are_interleaved(tmp_path: Path) -> None:
    values = np.arange(12)
    table = read_pixel_csv(write(tmp_path, "cat," + ",".join(map(str, values)) + "\n"), channels=3)
    np.testing.assert_array_equal(table.pixels, values.reshape(1, 2, 2, 3))
    with pytest.raises(DataError, match=r"3 channel\(s\), expected 1"):
        read_pixel_csv(tmp_path / "pixels.csv", channels=1)


def test_no_row_length_is_both_grey_and_rgb() -> None:
    squares = {side * side for side in range(1, 5000)}
    assert not squares & {3 * square for square in squares}  # the square root of 3 is irrational


def test_labels_may_be_quoted_long_or_accented(tmp_path: Path) -> None:
    long = "x" * 200
    table = read_pixel_csv(write(tmp_path, f'"ace, of clubs",1,2,3,4\n{long},1,2,3,4\nétoile,1,2,3,4\n'))
    assert table.labels == ["ace, of clubs", long, "étoile"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        (HEADER + "\n", "line 1 is a header and no row follows"),
        ("\n".join([HEADER, *ROWS, "3,1,2,3"]), r"line 4 has 4 cells, expected 5.*cut off"),
        ("\n".join([HEADER, ROWS[0], "3,1,2,3", ROWS[1]]), r"line 3 has 4 cells, expected 5 as in the first row$"),
        ("\n".join([HEADER, ROWS[0], "3,1,2,3,4,5", ROWS[1]]), "line 3 has 6 cells, expected 5"),
        ("\n".join([HEADER, *ROWS, "3,1,256,3,4"]), "line 4, column 3 is '256', expected a whole number from 0 to 255"),
        ("\n".join([HEADER, *ROWS, "3,1,2,-1,4"]), "line 4, column 4 is '-1'"),
        ("\n".join([HEADER, *ROWS, "3,1,2,1.5,4"]), "column 4 is '1.5'"),
        ("\n".join([HEADER, *ROWS, "3,1,2,12.0,4"]), "column 4 is '12.0'"),
        ("\n".join([*ROWS, "3,1,2,cat,4"]), "line 3, column 4 is 'cat'"),
        ("\n".join([*ROWS, "3,1,2,,4"]), "line 3, column 4 is ''"),
        ("\n".join([*ROWS, ",1,2,3,4"]), "line 3 has no label"),
        ("a,b,label,c,d\n1,2,3,4,x\n", "line 2, column 5 is 'x'"),
        ("3,1,x,3,4\n" + ROWS[0], "line 1, column 3 is 'x'"),
        ("label,a,b,c,d,e\n3,1,2,3,4,5", "line 1 has 6 cells, expected a label and the pixels of a square"),
        ("just text\nand more\n", "line 1 has 1 cells"),
        ("3;1;2;3;4\n", "line 1 has 1 cells"),
        ("<!DOCTYPE html>\n<html>", "a web page"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "isn't UTF-8|binary"),
        (b"PK\3\4\0\0\0", "binary"),
        (b"3,1,2,3,4\n3,1,2,3,\xff\n", "isn't UTF-8"),
        (b"3,1,2,3,4\n" * 1000 + b"3,1,\0,3,4\n", "line 1001, column 3|isn't CSV"),
        (b'3,1,2,3,"' + b"4" * 200_000, "isn't CSV"),
    ],
)
def test_malformed_csv_raises_data_error_with_the_line(tmp_path: Path, text: str | bytes, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=expected) as caught:
        read_pixel_csv(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.trust("pixel columns in another order than that of the pixels", "a scrambled image")
@pytest.mark.parametrize(("name", "start"), [("pixel{}", 0), ("pixel{}", 1), ("{}", 0), ("Px_{:03}", 7)])
@pytest.mark.parametrize("order", ["text", "reversed", "shuffled", "right"])
@pytest.mark.parametrize("label", [0, 70, 144])
def test_numbered_pixels_are_read_in_the_order_of_their_numbers(
    tmp_path: Path, name: str, start: int, order: str, label: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 144))
    names = [name.format(start + i) for i in range(144)]
    columns = list(range(144))
    if order == "text":
        columns.sort(key=lambda i: names[i])
    elif order == "reversed":
        columns.reverse()
    elif order == "shuffled":
        np.random.default_rng(1).shuffle(columns)
    head = [names[i] for i in columns]
    rows = [[str(row[i]) for i in columns] for row in pixels]
    for number, row in enumerate(rows):
        row.insert(label, f"c{number}")
    lines = [",".join([*head[:label], "label", *head[label:]]), *(",".join(row) for row in rows)]
    table = read_pixel_csv(write(tmp_path, "\n".join(lines)))
    assert table.pixels.flags.c_contiguous and table.labels == ["c0", "c1", "c2"]
    np.testing.assert_array_equal(table.pixels.reshape(3, 144), pixels)


@pytest.mark.parametrize("name", ["{}{}", "{}_{}", "pixel_{}_{}"])
@pytest.mark.parametrize("order", ["planes", "bgr", "text", "right"])
def test_numbered_colours_are_read_as_r_g_b_of_each_pixel(tmp_path: Path, name: str, order: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3))
    columns = [(i, channel) for i in range(144) for channel in range(3)]
    names = {(i, channel): name.format("rgb"[channel], i) for i, channel in columns}
    keys = {
        "planes": lambda key: (key[1], key[0]),
        "bgr": lambda key: (key[0], -key[1]),
        "text": names.__getitem__,
        "right": lambda key: key,
    }
    columns.sort(key=keys[order])
    lines = ["label," + ",".join(map(names.__getitem__, columns))]
    lines.append("7," + ",".join(str(pixels.reshape(144, 3)[key]) for key in columns))
    np.testing.assert_array_equal(read_pixel_csv(write(tmp_path, "\n".join(lines))).pixels[0], pixels)


@pytest.mark.parametrize("name", ["{row}x{column}", "x{column}_y{row}"])
def test_names_by_row_and_column_are_read_in_their_order_and_refused_in_another(tmp_path: Path, name: str) -> None:
    names = [name.format(row=row, column=column) for row in range(12) for column in range(12)]
    row = ",".join(map(str, range(144)))
    table = read_pixel_csv(write(tmp_path, f"label,{','.join(names)}\n1,{row}"))
    assert table.pixels.reshape(-1).tolist() == list(range(144))
    with pytest.raises(DataError, match=r"line 1: column '\w+' comes after '\w+'; expected .* sort the columns$"):
        read_pixel_csv(write(tmp_path, f"label,{','.join(sorted(names))}\n1,{row}"))


@pytest.mark.parametrize("names", ["p1,p9,p2,p3", "p2,p1,p1,p3", "a1,q2,a3,a2"])
def test_numbers_that_give_no_order_are_refused(tmp_path: Path, names: str) -> None:
    with pytest.raises(DataError, match=r"line 1: column '.*' comes after '.*'; expected the pixels from the top left"):
        read_pixel_csv(write(tmp_path, f"label,{names}\n1,2,3,4,5"))


INDEX = "line 1: the first column has no name, as the index that pandas adds: write the file with index=False, or call"
ONE_LESS = (
    r"line 1 has 6 cells, expected .* \(one cell less; is there an index besides the label, or a comma at the end\?"
)


@pytest.mark.trust("an index column or a comma at the end, in CSV files of pixels", "another image, or an unclear line")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (",label,p1,p2,p3,p4\n0,3,1,2,3,4", INDEX),
        ("Unnamed: 0,label,p1,p2,p3,p4\n0,3,1,2,3,4", INDEX),
        (",p1,p2,p3,p4\n0,1,2,3,4\n1,1,2,3,4", INDEX),
        (",0,1,2,3\n0,1,2,3,4\n1,1,2,3,4", INDEX),
        ("0,3,1,2,3,4\n1,3,1,2,3,4", ONE_LESS),
        ("id,label,p1,p2,p3,p4\n0,3,1,2,3,4", ONE_LESS),
        ("label,p1,p2,p3,p4,\n3,1,2,3,4,", "line 1 ends with a comma: remove the comma at the end of every line"),
        ("3,1,2,3,4,\n3,1,2,3,4,", "line 1 ends with a comma"),
        (
            "3,1,2,3,4\n3,1,2,3,4,",
            r"line 2 has 6 cells, expected 5 as in the first row \(it ends with a comma: remove it\)$",
        ),
    ],
)
def test_index_column_and_trailing_comma_have_a_sentence_of_their_own(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        read_pixel_csv(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_folder_or_missing_file_raises_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        read_pixel_csv(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        read_pixel_csv(tmp_path / "absent.csv")


def test_fast_and_slow_parsers_agree(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 49))
    rows = "\n".join(f"{i % 7}," + ",".join(map(str, row)) for i, row in enumerate(pixels))
    fast = read_pixel_csv(write(tmp_path, rows))
    slow = read_pixel_csv(
        write(tmp_path, rows + "\n\n0," + ",".join(["0"] * 49))
    )  # the blank line needs the slow parser
    np.testing.assert_array_equal(fast.pixels[..., 0].reshape(50, 49), pixels)
    np.testing.assert_array_equal(slow.pixels[:-1], fast.pixels)
    assert slow.labels[:-1] == fast.labels and slow.lines[-2:].tolist() == [50, 52]


needs_odd = pytest.mark.skipif(not (SHARED / "odd" / "csv").is_dir(), reason="the real odd files aren't here")


@needs_odd
def test_real_web_page_is_refused_and_a_real_csv_without_header_is_read() -> None:
    with pytest.raises(DataError, match="a web page"):
        read_pixel_csv(SHARED / "odd" / "csv" / "html_error_page_named_sign_mnist_test.csv")
    table = read_pixel_csv(SHARED / "odd" / "csv" / "sign_mnist_noheader_truncated_11rows.csv")
    assert table.pixels.shape == (11, 28, 28, 1) and table.labels[0] == "11" and table.lines[0] == 1
    assert table.pixels[0, 0, :3, 0].tolist() == [169, 170, 173] and table.pixels[10, 27, 27, 0] == 144


@pytest.mark.skipif(not (SHARED / "sign_mnist").is_dir(), reason="the real sign-MNIST slices aren't here")
@pytest.mark.parametrize(("split", "count"), [("train", 6000), ("test", 1500)])
def test_real_sign_mnist_slice_has_its_counts_and_labels(split: str, count: int) -> None:
    table = read_pixel_csv(SHARED / "sign_mnist" / f"sign_mnist_{split}.csv", channels=1)
    assert table.pixels.shape == (count, 28, 28, 1) and len(table.labels) == count
    assert set(table.labels) == {str(label) for label in range(25) if label != 9}
    assert table.lines.tolist() == list(range(2, count + 2))
