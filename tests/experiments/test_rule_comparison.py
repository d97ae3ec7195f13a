"""The comparison of the rule with DeepCache and Spectrum."""

import dato
from dato.experiments.rule_comparison import INTERVALS, compare_rule, markdown
from dato.generation.sampling import Sampling


def test_the_rule_never_takes_more_than_what_it_is_compared_with(make_pipe):
    settings = [("dpm++2m", 8, 3.0), ("euler-a", 6, 1.0)]
    done = []
    pipe = make_pipe()
    prompts = ["a dog", "a rose"]
    results = list(compare_rule(pipe, prompts, settings, Sampling(), lambda *step: done.append(step)))
    assert done == [(0, 2), (1, 2), (2, 2)]
    assert len([row for row in results if row.method.startswith("DeepCache")]) == 2 * len(INTERVALS)
    assert any(row.method.startswith("Spectrum") for row in results)
    for row in results:
        assert row.rule_speedup >= row.speedup - 1e-9 and row.speedup > 1
        assert row.psnr.shape == row.rule_psnr.shape == (2,) and (row.psnr < 100).all()
    table = markdown(results).splitlines()
    assert len(table) == 2 + len(results) and len({line.count("|") for line in table}) == 1
    assert dato.current_schedule(pipe) is None


def test_the_script_prints_the_table(run):
    code, printed, _ = run(
        "scripts/compare_rule.py", "--images", 1, "--steps", 4, "--samplers", "ddim", "--guidance-scales", 1
    )
    assert code == 0 and "| ddim | 4 | 1 | DeepCache N=2 |" in printed
    code, _, errors = run("scripts/compare_rule.py", "--samplers", "nothing")
    assert code and "unknown 'nothing'" in errors
