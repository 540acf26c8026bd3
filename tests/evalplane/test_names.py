"""What names mean: ours, olmes', a format, a part; and what is said of those that mean nothing."""

import pytest

from evalplane.task import SUITES, Suites, heads, load_suite, load_task, suite_entries, task_names
from triplane import recipe
from triplane.errors import UsageError


@pytest.mark.parametrize(
    ("name", "task", "formats", "parts"),
    [
        ("arc_challenge", "arc_challenge", ["mc", "cloze"], 0),
        ("arc_challenge::olmes", "arc_challenge", ["mc", "cloze"], 0),
        ("arc_challenge:mc::olmes", "arc_challenge-mc", ["mc"], 0),
        ("arc_challenge:rc::olmes", "arc_challenge-cloze", ["cloze"], 0),
        ("arc_easy:mc", "arc_easy-mc", ["mc"], 0),
        ("arc_easy:bpb", "arc_easy-bpb", ["bpb"], 0),
        ("mmlu:mc::olmes", "mmlu-mc", ["mc"], 57),
        ("mmlu_anatomy:rc::olmes", "mmlu-anatomy-cloze", ["cloze"], 1),
        ("agi_eval_english:1shot::olmes", "agieval_english", ["mc"], 8),
        ("agi_eval_lsat-ar:1shot::olmes", "agieval_english-lsat-ar", ["mc"], 1),
        ("bbh:cot-v1::olmes", "bbh", ["generate"], 27),
        ("bbh_snarks:cot-v1::olmes", "bbh-snarks", ["generate"], 1),
        ("mmlu_pro:mc::none", "mmlu_pro", ["mc"], 14),
        ("mmlu_pro_computer science:mc::none", "mmlu_pro-computer-science", ["mc"], 1),
        ("naturalqs::olmes", "natural_questions", ["generate"], 0),
        ("naturalqs:bpb::olmes", "natural_questions-bpb", ["bpb"], 0),
        ("gsm8k::olmes", "gsm8k", ["generate"], 0),
        ("gsm8k:star", "gsm8k_star", ["generate"], 0),
        ("drop::olmes", "drop", ["generate"], 0),
        ("arc_easy:rc::olmes:full", "arc_easy-cloze-full", ["cloze"], 0),
        ("hellaswag:full", "hellaswag-full", ["mc", "cloze"], 0),
    ],
)
def test_a_name_and_what_it_means(name: str, task: str, formats: list[str], parts: int) -> None:
    found = load_task(name)
    assert (found.name, list(found.formats), len(found.data.parts)) == (task, formats, parts)
    assert load_suite(name).tasks == (found,)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("arc_chalenge", "did you mean 'arc_challenge'"),
        ("arc_challenge:cot", "the task arc_challenge has the formats mc, cloze"),
        ("arc_challenge:mc::tulu", "the task arc_challenge has the formats mc, cloze and is olmes's"),
        ("mmlu_anatomi:mc", "did you mean 'mmlu_anatomy'"),
        ("agi_eval_english::olmes", "no suite or task is named"),  # olmes has it with its variant only
        ("gsm8k:star::olmes", "no suite or task is named"),  # the draw is ours
        ("held_out_bits_per_byte:bpb", "no suite or task is named"),
        ("gsm8k:star:full", "no suite or task is named"),
        ("arc_challenge:mc::olmes:full", "the task arc_challenge has"),  # nothing is drawn from it
        ("gsm8k:tar", "no suite or task is named"),
        ("", "no suite or task is named"),
        ("../task", "no suite or task is named"),
    ],
)
def test_a_name_that_means_nothing(name: str, words: str) -> None:
    for load in (load_task, load_suite):
        with pytest.raises(UsageError, match=words):
            load(name)


def test_every_name_of_olmes_base_suites_is_accepted() -> None:
    """The suites of the OLMo 2 paper's command, as olmes lists them (reference/eval.md, A2)."""
    nine = ("arc_easy", "arc_challenge", "boolq", "csqa", "hellaswag", "openbookqa", "piqa", "socialiqa", "winogrande")
    assert [one.name for one in load_suite("core_9mcqa::olmes").tasks] == list(nine)
    assert [one.name for one in load_suite("olmo_2_generative::olmes").tasks] == [
        "coqa",
        "squad",
        "jeopardy",
        "natural_questions",
        "drop",
    ]
    assert {one.name for one in load_suite("olmo_2_heldout::olmes").tasks} == {
        "agieval_english",
        "bbh",
        "gsm8k",
        "mmlu_pro",
        "triviaqa",
    }
    for name in nine:
        assert [len(load_task(f"{name}:{key}::olmes").formats) for key in ("mc", "rc")] == [1, 1]
    for head in heads():
        for part in head.parts:
            variant = f":{head.variant}" if head.variant else ""
            if head.olmes:
                assert load_task(f"{head.olmes_part}_{part}{variant}::{head.regime}").data.parts == (part,)


def test_no_name_means_two_things() -> None:
    for name in task_names():
        assert load_task(name).name == name
    for suite in recipe.load(SUITES, Suites).suites:
        assert suite not in task_names()


def test_the_paper_s_ten_columns() -> None:
    suite, entry = load_suite("olmo2_table9"), suite_entries()["olmo2_table9"]
    assert suite.aggregation == "mean" and len(suite.tasks) == 10
    assert [entry.columns[one.name] for one in suite.tasks] == [
        "MMLU",
        "ARC_C",
        "HSwag",
        "WinoG",
        "NQ",
        "DROP",
        "AGIEval",
        "GSM8K",
        "MMLU-Pro",
        "TQA",
    ]
    averages = {one.name: {format.average for format in one.formats.values()} for one in suite.tasks}
    assert averages["mmlu-mc"] == averages["agieval_english"] == {"parts"}
    assert averages["mmlu_pro"] == {"items"}  # micro
    assert {format.average for format in load_task("bbh").formats.values()} == {"parts"}


def test_a_part_has_its_own_shots_and_no_checksum_of_the_whole() -> None:
    whole, part = load_task("mmlu"), load_task("mmlu_anatomy")
    assert whole.data.sha256 is not None and part.data.sha256 is None
    assert part.shots is not None and part.shots.sha256 is None
    assert part.formats == whole.formats


def test_overrides_of_a_named_format_reach_it() -> None:
    suite = load_suite("olmo2_table9", ["mmlu:mc.shots.count=3", "gsm8k.sample={count: 10, seed: 1}"])
    assert suite.tasks[0].shots is not None and suite.tasks[0].shots.count == 3
    gsm8k = next(one for one in suite.tasks if one.name == "gsm8k")
    assert gsm8k.sample is not None and gsm8k.data.sha256 is None


def test_full_means_every_row_and_never_a_dump_of_the_sample() -> None:
    drawn, full = load_task("drop"), load_task("drop::olmes:full")
    assert drawn.data.is_drawn and drawn.sample is not None and full.sample is None
    assert full.data.path == drawn.data.also[0].path and full.data.format == "parquet" and full.data.also == ()
    arc = load_task("arc_easy:full")
    assert (arc.data.path, arc.sample, arc.data.sha256) == (load_task("arc_easy").data.path, None, None)
