"""The table of evaluations: intervals only where they are sound, and no quiet comparison across protocols."""

import contextlib
import csv
import json
import statistics

import pytest
from PIL import Image

from bigtrain.errors import UserError
from bigtrain.evaluation.compare import Cell, _single, compare, compare_values, repeated, share


def write(path, *, seed=0, features="a", step=10, weights="ema", extra=None, **numbers):
    """`extra`: of the protocol."""
    path.parent.mkdir(parents=True, exist_ok=True)
    protocol = {"weights": weights, "step": step, "samples": 100, "seed": seed, "features": {"fingerprint": features}}
    protocol |= extra or {}
    path.write_text(json.dumps({"step": step, **numbers, "protocol": protocol}))
    return path


@pytest.fixture
def run(tmp_path):
    """Three seeds at the newest step, and an older one."""
    for seed, fd_own in enumerate((4.0, 5.0, 6.0)):
        name = "step_00000020" + (f"_{seed}" if seed else "")
        write(tmp_path / "run" / "evaluations" / f"{name}.json", seed=seed, step=20, fd_own=fd_own, class_accuracy=0.9)
    write(tmp_path / "run" / "evaluations" / "step_00000010.json", fd_own=50.0)
    return tmp_path / "run"


def test_a_run_is_the_mean_over_its_seeds_at_the_newest_step(run, tmp_path, capsys):
    other = write(tmp_path / "other.json", fd_own=7.25, weights="raw")
    compare([run, other], tmp_path / "table.csv", tmp_path / "table.png")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    half = 4.302652729749464 / 3**0.5  # Student's, of 2 degrees of freedom, times a deviation of 1
    assert lines[0].split() == ["fd_own", "class_accuracy", "seeds"]
    assert f"5 ± {half:.2g}" in lines[1]
    assert lines[1].split()[-1] == "3"
    assert "7.25" in lines[2]
    assert "±" not in lines[2], "a FID of one seed has no interval"
    assert err == "", "other weights are no other protocol"
    table = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert float(table[0]["fd_own_low"]) == pytest.approx(5 - half)
    assert table[1]["fd_own_low"] == ""
    assert Image.open(tmp_path / "table.png").width > 200


def test_rows_of_another_protocol_are_marked_and_what_differs_is_told(run, tmp_path, capsys):
    other = write(tmp_path / "other.json", fd_own=1.0, features="b")
    compare([run, other], None, None)
    out, err = capsys.readouterr()
    assert "!A" in out.splitlines()[1]
    assert "!B" in out.splitlines()[2]
    assert err.startswith("WARNING: rows B were not measured as rows A were")
    assert 'features.fingerprint ("a" / "b")' in err


def test_a_step_that_was_evaluated_in_several_ways_has_a_row_for_each(run, capsys):
    """Named by as few keys as tell them apart; seeds of one way are still one row, and a seed counts once."""
    path = run / "evaluations"
    write(path / "step_00000020_b.json", step=20, fd_own=2.0, class_accuracy=0.9, features="b")
    write(path / "step_00000020_c.json", step=20, fd_own=3.0, class_accuracy=0.9, features="b", extra={"samples": 500})
    write(path / "step_00000020_d.json", step=20, fd_own=4.0, class_accuracy=0.9)
    compare([run], None, None)
    out, err = capsys.readouterr()
    rows = out.splitlines()[1:]
    assert [row.split(" ±")[0].split("  0.9")[0].rstrip().removeprefix(f"{run} ") for row in rows] == [
        "(samples=100 features.fingerprint=a) !A  5",
        "(samples=100 features.fingerprint=b) !B  2",
        "(samples=500 features.fingerprint=b) !C  3",
    ]
    assert [row.split()[-1] for row in rows] == ["3", "1", "1"]
    assert err.count("WARNING") == 2


def test_what_only_one_row_measured_makes_no_other_protocol(tmp_path, capsys):
    path = tmp_path / "run" / "evaluations"
    write(path / "step_00000010.json", fd_own=4.0)
    write(path / "step_00000010_x.json", kd_own=0.5, extra={"kd": {"subsets": 100}})
    write(tmp_path / "other.json", kd_own=0.6, extra={"kd": {"subsets": 50}})
    compare([tmp_path / "run"], None, None)
    out, err = capsys.readouterr()
    assert [row.split()[1:4] for row in out.splitlines()[1:]] == [
        ["(metrics=fd_own)", "4", "-"],
        ["(metrics=kd_own)", "-", "0.5"],
    ]
    assert err == ""
    compare([tmp_path / "run", tmp_path / "other.json"], None, None)
    assert "kd.subsets (100 / 50)" in capsys.readouterr().err


def test_ways_that_differ_in_more_than_their_metrics_are_not_named_by_a_list_of_these(tmp_path, capsys):
    path = tmp_path / "run" / "evaluations"
    write(path / "step_00000010.json", fd_own=4.0)
    write(path / "step_00000010_x.json", fd_own=5.0, kd_own=0.5, extra={"samples": 500, "kd_own": {"subsets": 100}})
    compare([tmp_path / "run"], None, None)
    assert [row.split()[1] for row in capsys.readouterr().out.splitlines()[1:]] == ["(samples=100)", "(samples=500)"]


def test_a_seed_within_one_metrics_part_of_the_protocol_makes_repetitions_too(tmp_path, capsys):
    for seed in range(2):
        bound = {"bits_per_dim": {"likelihood": "variational", "seed": seed}}
        path = tmp_path / "run" / "evaluations" / f"step_00000010_{seed}.json"
        write(path, seed=seed, bits_per_dim=3.0 + seed, bits_per_dim_standard_error=0.1, extra=bound)
    compare([tmp_path / "run", path], None, None)
    out, err = capsys.readouterr()
    assert [row.split()[-1] for row in out.splitlines()[1:]] == ["2", "1"]
    assert err == ""


def test_bits_per_dimension_say_their_kind_and_older_ones_are_read_as_what_they_were(tmp_path, capsys):
    def measured(name, **facts):
        return write(tmp_path / f"{name}.json", bits_per_dim=3.0, extra={"bits_per_dim": {"samples": 9} | facts})

    old = measured("old", bound="variational", likelihood_samples=1)
    new = measured("new", likelihood="variational", bits=8, likelihood_samples=1)
    old_exact, exact = measured("old_exact"), measured("exact", likelihood="exact", bits=8)
    for same in ([old, new], [old_exact, exact]):
        compare(same, None, None)
        assert capsys.readouterr().err == ""
    compare([new, exact, measured("few", likelihood="variational", bits=5, likelihood_samples=1)], None, None)
    err = capsys.readouterr().err
    assert "bits_per_dim.bits (8 / 5)" in err
    assert "several kinds (bound; exact; bound, 5 bits)" in err
    compare([new, measured("black_and_white", likelihood="variational", bits=1, likelihood_samples=1)], None, None)
    assert "several kinds (bound; bound, 1 bit)" in capsys.readouterr().err


def test_models_that_give_their_likelihood_in_other_ways_are_compared(tmp_path, capsys):
    """A flow, a VAE and its tighter bound, on the same pixels."""

    def measured(name, **facts):
        own = {"bits_per_dim": {"samples": 9, "bits": 8, "fingerprint": "a"} | facts}
        return write(
            tmp_path / f"{name}.json", bits_per_dim=3.0, nats=400.0, bits_per_dim_standard_error=0.1, extra=own
        )

    flow = measured("flow", likelihood="variational", likelihood_samples=1)
    bound = measured("vae", likelihood="variational", likelihood_samples=1)
    compare([flow, bound, measured("weighted", likelihood="importance_weighted", likelihood_samples=64)], None, None)
    out, err = capsys.readouterr()
    assert "!" not in out
    assert "WARNING" not in err
    assert "several kinds (bound; IW-64)" in err
    compare([flow, bound], None, None)
    out, err = capsys.readouterr()
    assert err == ""
    assert "400 ± 26 bound" in out
    compare([flow, measured("other", likelihood="variational", fingerprint="b")], None, None)
    assert 'bits_per_dim.fingerprint ("a" / "b")' in capsys.readouterr().err


def test_seeds_do_not_shrink_an_error_of_held_out_images(tmp_path, capsys):
    for seed in range(4):
        path = tmp_path / "run" / "evaluations" / f"step_00000010_{seed}.json"
        write(path, seed=seed, bits_per_dim=3.0 + 1e-4 * seed, bits_per_dim_standard_error=0.1 + 0.01 * seed)
    compare([tmp_path / "run"], None, None)
    assert f"3 ± {1.96 * 0.115:.2g}" in capsys.readouterr().out


def test_the_table_has_the_kind_of_bits_per_dimension_beside_them(tmp_path, capsys):
    def measured(name, **facts):
        further = {"bits_per_dim": {"samples": 9, **facts}}
        return write(
            tmp_path / f"{name}.json", bits_per_dim=3.0, bits_per_dim_standard_error=0.1, fd=2.0, extra=further
        )

    weighted = measured("weighted", likelihood="importance_weighted", bits=5, likelihood_samples=64)
    compare([measured("bound", likelihood="variational"), weighted], tmp_path / "table.csv", tmp_path / "table.png")
    out = capsys.readouterr().out
    assert "3 ± 0.2 bound " in out
    assert "3 ± 0.2 IW-64, 5 bits" in out
    header, *lines = (line.split(",", 8) for line in (tmp_path / "table.csv").read_text().splitlines())
    column = next(number for number, name in enumerate(header) if name == "bits_per_dim_kind")
    assert lines[0][column] == "bound"
    assert "fd_kind" not in (tmp_path / "table.csv").read_text()
    assert (tmp_path / "table.png").exists()


def test_a_standard_error_that_is_known_gives_an_interval(tmp_path, capsys):
    path = write(tmp_path / "a.json", bits_per_dim=3.0, bits_per_dim_standard_error=0.1)
    compare([path], None, None)
    assert "3 ± 0.2" in capsys.readouterr().out


def test_a_number_that_is_the_same_for_all_seeds_has_no_interval_of_repetitions(tmp_path, capsys):
    for seed in range(3):
        numbers = {"bits_per_dim": 3.0, "bits_per_dim_standard_error": 0.1, "fd_own_real": 2.0, "fd_own": 4.0 + seed}
        write(tmp_path / "run" / "evaluations" / f"step_00000010_{seed}.json", seed=seed, **numbers)
    compare([tmp_path / "run"], None, None)
    out = capsys.readouterr().out
    assert "3 ± 0.2" in out
    assert "± 0 " not in out


def test_a_way_of_sampling_in_the_names_changes_no_interval(tmp_path, capsys):
    path = write(tmp_path / "a.json", class_accuracy_ddim_20=0.9, kd_own_ddim_20=0.1, kd_own_std_ddim_20=0.01)
    compare([path], None, None)
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["class_accuracy_ddim_20", "kd_own_ddim_20", "seeds"]
    assert "0.9 (-0.074 +0.045)" in row


def test_values_of_one_setting_share_columns_whatever_the_names_say_of_it(tmp_path, capsys):
    named = []
    for value, way in (("0", "dpmpp_20"), ("1.5", "dpmpp_20_guided_1.5")):
        path = tmp_path / f"{value}.json"
        write(path, **{f"fd_x_{way}": 3.0, f"recall_x_{way}": 0.5, "kd_x": 2.0})
        named.append((f"guidance={value}", path))
    compare_values(named, tmp_path / "table.csv", tmp_path / "curve.png")
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["fd_x_dpmpp_20", "recall_x_dpmpp_20", "kd_x", "seeds"]
    assert [row.split()[0] for row in rows] == ["guidance=0", "guidance=1.5"]
    assert all("-" not in row.split() for row in rows)
    assert Image.open(tmp_path / "curve.png").size == (640, 480)


def test_the_interval_of_a_share_is_wilsons():
    cell = share(0.9, 100)
    assert (0.9 - cell.half[0], 0.9 + cell.half[1]) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert share(1.0, 10).half[1] == pytest.approx(0, abs=1e-12)


def test_repetitions_have_students_interval():
    values = [1.0, 2.0, 4.0, 4.5]
    cell = repeated(values)
    assert cell.value == statistics.fmean(values)
    assert cell.half[0] == pytest.approx(3.182446 * statistics.stdev(values) / 2, rel=1e-6)
    assert str(Cell(1.5)) == "1.5"


def test_what_is_no_evaluation_is_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "b.json").write_text("nonsense")
    for path, sentence in (("empty", "has no evaluations"), ("a.json", "no protocol"), ("b.json", "not the JSON")):
        with pytest.raises(UserError, match=sentence):
            compare([tmp_path / path], None, None)


def test_results_with_the_names_of_format_1_stand_in_the_columns_of_today(tmp_path, capsys):
    facts = {"name": "classifier"}
    old = write(tmp_path / "old.json", accuracy=0.5, accuracy_ddim_20=0.25, extra={"judge": facts})
    new = write(tmp_path / "new.json", class_accuracy=0.5, class_accuracy_ddim_20=0.25, extra={"evaluator": facts})
    compare([old, new], None, None)
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["class_accuracy", "class_accuracy_ddim_20", "seeds"]
    assert err == f"{old}: was written when numbers had other names: " + (
        "accuracy is read as class_accuracy, accuracy_ddim_20 is read as class_accuracy_ddim_20\n"
    ), "and both were measured in the same way"


CLASSIFIER = {"kind": "trained on the data's labels", "name": "classifier (features)"}
INCEPTION = {"kind": "FID Inception", "name": "Inception 2015-12-05, clean"}


def test_distances_that_were_all_called_fid_stand_under_their_features_and_a_sentence_says_so(tmp_path, capsys):
    old_numbers = {"fid_ddim_20": 4.0, "kid": 0.5, "kid_std": 0.1, "real_fid": 1.0, "intra_fid": 7.0, "rfid": 2.0}
    facts = {"features": CLASSIFIER, "kid": {"subsets": 3}, "real_fid": {"images_a_side": 5}}
    old = write(tmp_path / "old.json", extra=facts, **old_numbers)
    of_inception = write(tmp_path / "inception.json", extra={"features": INCEPTION}, **old_numbers)
    facts = {"features": CLASSIFIER, "kd": {"subsets": 3}, "fd_real": {"images_a_side": 5}}
    names = ["fd_classifier_ddim_20", "kd_classifier", "fd_classifier_real", "intra_fd_classifier", "rfd_classifier"]
    new = write(tmp_path / "new.json", extra=facts, **dict.fromkeys(names, 1.0))
    compare([old, new], None, None)
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == [*names, "seeds"]
    (told,) = err.splitlines()
    assert told.startswith(
        f"{old}: was written when numbers had other names: fid_ddim_20 is read as fd_classifier_ddim_20, "
    )
    assert "real_fid is read as fd_classifier_real" in told
    compare([of_inception], None, None)
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["fid_ddim_20", "kid", "fid_real", "intra_fid", "rfid", "seeds"]
    assert err == f"{of_inception}: was written when numbers had other names: real_fid is read as fid_real\n"


def test_the_features_of_reconstructions_alone_name_their_distance_too(tmp_path, capsys):
    path = tmp_path / "a.json"
    features = {"kind": "TorchScript", "name": "My-Net.pt", "fingerprint": "0"}
    path.write_text(json.dumps({"rfid": 2.0, "protocol": {"samples": 3, "rfid": {"features": features}}}))
    compare([path], None, None)
    assert capsys.readouterr().out.splitlines()[0].split() == ["rfd_my_net", "seeds"]


def test_a_network_whose_name_ends_like_a_deviation_hides_no_number(tmp_path, capsys):
    path = write(tmp_path / "a.json", fd_my_std=4.0, kd_my_std=0.5, kd_my_std_std=0.1, ssim_ddim_20=0.5)
    compare([path], None, None)
    assert capsys.readouterr().out.splitlines()[0].split() == ["fd_my_std", "kd_my_std", "ssim_ddim_20", "seeds"]


def test_an_error_gives_an_interval_whatever_the_way_of_sampling(tmp_path, capsys):
    path = write(tmp_path / "a.json", psnr_ddim_20=30.0, psnr_standard_error_ddim_20=0.5)
    compare([path], None, None)
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["psnr_ddim_20", "seeds"]
    assert "30 ± 0.98" in row


DAMAGED = {
    "deep": b"[" * 100_000,
    "no UTF-8": b"\xff",
    "an error of text": b'{"fd_own": 1.0, "fd_own_standard_error": "x", "protocol": {}}',
    "an endless error": b'{"fd_own": 1.0, "fd_own_standard_error": 1' + b"0" * 400 + b', "protocol": {}}',
    "a share of no images": b'{"class_accuracy": 0.5, "protocol": {}}',
    "a share of 0 images": b'{"class_accuracy": 0.5, "protocol": {"samples": 0}}',
    "a share of -1 images": b'{"class_accuracy": 0.5, "protocol": {"samples": -1}}',
    "a share of text": b'{"class_accuracy": 0.5, "protocol": {"samples": "x"}}',
    "a share of 9": b'{"class_accuracy": 9.0, "protocol": {"samples": 10}}',
    "no number": b'{"fd_own": NaN, "protocol": {}}',
    "endless numbers": b'{"fd_own": Infinity, "kd_own": -Infinity, "protocol": {}}',
    "a protocol of lists": b'{"fd_own": 1.0, "protocol": {"features": [{}], "weights": {}}}',
    "no numbers": b'{"protocol": {}}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_whatever_an_evaluation_holds_is_a_row_or_a_sentence(run, tmp_path, content):
    (tmp_path / "other.json").write_bytes(content)
    with contextlib.suppress(UserError):
        compare([run, tmp_path / "other.json"], tmp_path / "table.csv", tmp_path / "table.png")
    (run / "evaluations" / "step_00000020_3.json").write_bytes(content)
    with contextlib.suppress(UserError):
        compare([run], tmp_path / "table.csv", tmp_path / "table.png")


def test_names_in_an_evaluation_move_no_cursor(tmp_path, capsys):
    name = "fd_\x1b[2J\n"
    paths = [write(tmp_path / f"{name}{n}.json", **{name: 1.0}, extra={name: n}) for n in range(2)]
    compare(paths, None, None)
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert len(out.splitlines()) == 3


def test_a_picture_is_drawn_although_the_table_cannot_be_written(run, tmp_path):
    with pytest.raises(UserError, match=r"table\.csv"):
        compare([run], tmp_path / "nowhere" / "table.csv", tmp_path / "table.png")
    assert (tmp_path / "table.png").exists()


def test_a_share_of_held_out_images_is_of_those_and_not_of_the_samples():
    own = {"held_out_accuracy": {"split": "validation", "samples": 300}}
    for protocol in (own, own | {"samples": 10_000}):
        result = {"held_out_accuracy": 0.97, "protocol": protocol}
        assert _single("held_out_accuracy", result) == share(0.97, 300)
    assert _single("class_accuracy", {"class_accuracy": 0.5, "protocol": own | {"samples": 64}}) == share(0.5, 64)
