import time

import pytest

from omniavatar.config import Request
from pipelines.generate.sample_list import ListError, read_samples


def write(folder, name, text):
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_the_released_codes_lines_have_one_to_three_fields(tmp_path):
    (tmp_path / "face.png").touch()
    lines = (
        "A man talks.@@face.png@@voice.mp3\n\n  A woman  @@ face.png\nOnly words\n@@face.png@@voice.mp3\na@@b@@c@@d\n"
    )
    samples = read_samples(write(tmp_path, "list.txt", lines), seconds=2.0)
    face = tmp_path / "face.png"  # found beside the list
    assert [sample.request for sample in samples[:4]] == [
        Request(face, "voice.mp3" and samples[0].request.audio, "A man talks.", 0.0),
        Request(face, None, "A woman", 2.0),
        Request(None, None, "Only words", 2.0),
        Request(face, samples[3].request.audio, "", 0.0),
    ]
    assert str(samples[0].request.audio) == "voice.mp3"
    assert [sample.name for sample in samples] == ["000_face", "001_face", "002_Only_words", "003_face", "004"]
    assert "4 fields" in samples[4].error and not any(sample.error for sample in samples[:4])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "name,prompt,audio,seed,seconds\nfirst,hi,v.wav,7,\n,hi,,x,3\n,hi,,,nan\n,hi,,,,extra\n"),
        (
            "a.jsonl",
            '{"name": "first", "prompt": "hi", "audio": "v.wav", "seed": 7}\n{"prompt": "hi", "seed": "x"}\n'
            '{"seconds": "nan"}\nno json\n',
        ),
    ],
)
def test_tables_have_names_and_seeds_and_bad_lines_are_rows(tmp_path, name, text):
    first, *bad = read_samples(write(tmp_path, name, text))
    assert (first.name, first.seed, str(first.request.audio), first.error) == ("first", 7, "v.wav", "")
    words = ("expected a number", "finite", "more than the header" if name == "a.csv" else "not valid JSON")
    assert len(bad) == 3 and all(word in sample.error for word, sample in zip(words, bad, strict=True))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "prompt,picture\nhi,a.png\n", "picture.*prompt, image"),
        ("a.txt", "\n \n", "contains no samples"),
        (
            "a.jsonl",
            '{"name": "a", "prompt": "x"}\n{"name": "a", "prompt": "y"}\n',
            "more than one sample with the name 'a'",
        ),
    ],
)
def test_a_list_that_means_nothing_is_refused(tmp_path, name, text, words):
    with pytest.raises(ListError, match=words):
        read_samples(write(tmp_path, name, text))
    with pytest.raises(FileNotFoundError, match="no list at"):
        read_samples(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("prés".encode("latin-1"))
    with pytest.raises(ListError, match="UTF-8"):
        read_samples(tmp_path / "latin.txt")


def test_keys_nobody_knows_are_a_bad_line(tmp_path):
    (sample,) = read_samples(write(tmp_path, "a.jsonl", '{"promt": "hi"}\n'))
    assert "'promt' is not known" in sample.error


def test_separators_inside_strings_and_names_that_differ_late(tmp_path):
    long = "a_recording_of_the_first_speaker_in_the_hall_take_"
    lines = [f'{{"name": "{long}{n}", "prompt": "she speaks\u2028she smiles\x85"}}' for n in (1, 2)]
    one, two = read_samples(write(tmp_path, "a.JSONL", "\ufeff" + "\n".join(lines)))
    assert one.request.prompt == "she speaks\u2028she smiles" and one.name != two.name and len(one.name) == 40
    assert one.name.startswith("a_recording_of_the_first")


@pytest.mark.parametrize("prompt", ['["a man"]', '{"en": "a man"}', "true"])
def test_a_prompt_is_never_the_form_of_a_value(tmp_path, prompt):
    bad, good = read_samples(write(tmp_path, "a.json", f'[{{"prompt": {prompt}}}, {{"prompt": "hi", "seed": 3}}]'))
    assert "prompt is no text" in bad.error and good.seed == 3


def test_a_hundred_thousand_lines_take_linear_time(tmp_path):
    path = write(tmp_path, "a.txt", "".join(f"take {n}\n" for n in range(20_000)))
    begun = time.process_time()
    assert len(read_samples(path)) == 20_000 and time.process_time() - begun < 5
