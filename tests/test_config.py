"""Configs: what a YAML may say, and the sentence for everything that it may not."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from inat.config.reading import build, read_config
from inat.config.schema import FIRST_FIELDS, Config, DataConfig, parse_holdout, switch_epoch
from inat.config.strict_yaml import DEEPEST_LEVEL, LARGEST_FILE
from inat.config.values import merge
from inat.core.competitions import COMPETITIONS
from inat.core.errors import InputError, WorldError
from inat.losses import LOSSES
from inat.samplers import SAMPLERS

OPTIM_FIELDS = (
    "name, lr_per_256, lr_scaling, head_lr_factor, layer_decay, weight_decay, decay_norms, "
    "momentum, nesterov, schedule, warmup_epochs, milestones, step_factor, accumulate, "
    "device_batch, clip_grad_norm, ema_decay"
)
SECTIONS = (
    "seed, epochs, batch_size, data, sampler, transforms, model, loss, optim, runtime, stages"
)
HOLDOUTS = "none, a share between 0 and 1 (0.2), or fold:i/K with 1 <= i <= K (fold:1/5)"
SHIPPED = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))

CHANGED = """\
seed: 3
epochs: 7
batch_size: 16
data:
  root: some/where
  competition: inaturalist-2019-fgvc6
  train_on: train+val
  holdout: none
  holdout_seed: 4
  workers: 2
  worker_kind: processes
  on_bad_photo: skip
  keep_photos: true
  bad_photo_limit: 0.25
  band_edges: [10, 50]
sampler:
  name: effective_number
  epoch_size: 1000
  beta: 0.99
  threshold: 0.01
  after: 50%
transforms:
  image_size: 96
  eval_image_size: 128
  crop_pct: 1
  crop: pad
  pad: 2
  scale: [0.25, 0.75]
  ratio: [1, 1]
  flip: 0
  jitter: 0
  jitter_probability: 0.5
  blur: 0.1
  grayscale: 0.05
  policy: cifar10
  policy_operations: 3
  policy_magnitude: 5
  mixup: 0.2
  cutmix: 1
  erasing: 0.25
  cutout: 16
model:
  backbone: resnet18.a1_in1k
  weights: none
  dropout: 0.1
  drop_path: 0.2
  head: cosine
  head_scale: 20
  freeze: backbone
loss:
  name: focal
  tau: 0.5
  prior: counts
  class_weights: inverse
  beta: 0.99
  after: 3
  max_margin: 0.3
  gamma: 1
  mitigation: 0.5
  compensation: 1
  correct_twice: true
  label_smoothing: 0.1
optim:
  name: sgd
  lr_per_256: 1e-5
  lr_scaling: none
  head_lr_factor: 10
  layer_decay: 0.75
  accumulate: auto
  device_batch: 2
  weight_decay: 1e-4
  decay_norms: true
  momentum: 0.8
  nesterov: false
  schedule: step
  warmup_epochs: 0.5
  milestones: [3, 5]
  step_factor: 0.1
  clip_grad_norm: 1
  ema_decay: 0.999
runtime:
  device: cpu
  precision: fp32
  channels_last: false
  fast_kernels: false
  deterministic: true
  gradient_checkpointing: true
  log_every: 1
  checkpoint_minutes: 2
  checkpoint_steps: 7
  compile: true
stages:
- epochs: 6
  new_head: true
  transforms:
    image_size: 64
"""


def fault(tmp_path: Path, text: str | bytes, overrides: dict[str, Any] | None = None) -> str:
    """The sentence for a bad config, with the file's path as FILE."""
    path = tmp_path / "bad.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        read_config(path, overrides)
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "FILE")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epoch: 3", "FILE: unknown key epoch; did you mean epochs?"),
        ("optim: {weight_decays: 3}",
         "FILE: unknown key optim.weight_decays; did you mean optim.weight_decay?"),
        ("optim: {lr-per-256: 1}",
         "FILE: unknown key optim.lr-per-256; did you mean optim.lr_per_256?"),
        ("optim: {zzz: 1}", f"FILE: unknown key optim.zzz; valid keys: {OPTIM_FIELDS}"),
        ("zzz: 1", f"FILE: unknown key zzz; valid keys: {SECTIONS}"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_refused_and_the_nearest_valid_key_named(
    tmp_path: Path, text: str, sentence: str
) -> None:
    assert fault(tmp_path, text) == sentence


def test_a_sections_key_in_a_flat_yaml_is_refused_and_its_section_named(tmp_path: Path) -> None:
    sentence = fault(tmp_path, "seed: 1\nlr_per_256: 1e-3\n")
    assert sentence == "FILE: unknown key lr_per_256; did you mean optim.lr_per_256?"


@pytest.mark.parametrize("value", ["3", "sgd", "[1, 2]", "true"])
def test_a_scalar_or_list_where_a_section_belongs_is_refused(tmp_path: Path, value: str) -> None:
    assert fault(tmp_path, f"optim: {value}") == (
        f"FILE: optim is a section; write its fields ({OPTIM_FIELDS}) on indented lines below it"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epochs: abc",
         "FILE: epochs takes a whole number, not 'abc'"),
        ("epochs: null",
         "FILE: epochs takes a whole number, not null"),
        ("epochs: 3.5", "FILE: epochs takes a whole number, not 3.5"),
        ("epochs: .inf", "FILE: epochs takes a whole number, not inf"),
        ("epochs: true", "FILE: epochs takes a whole number, not true"),
        ("epochs: [3]", "FILE: epochs takes a single value, not the list [3]"),
        ("epochs: {a: 1}", "FILE: epochs takes a single value, it has no keys below it"),
        ("data: {workers: two}",
         "FILE: data.workers takes a whole number, not 'two'"),
        ("data: {holdout: no}", "FILE: data.holdout takes a text, not false"),
        ("data: {holdout: null}",
         "FILE: data.holdout takes a text, not null"),
        ("model: {backbone: [a]}",
         "FILE: model.backbone takes a single value, not the list ['a']"),
        ("loss: {tau: abc}", "FILE: loss.tau takes a number, not 'abc'"),
        ("loss: {tau: true}", "FILE: loss.tau takes a number, not true"),
        ("optim: {name: yes}", "FILE: optim.name takes one of adamw, sgd, not true"),
        ("runtime: {channels_last: maybe}",
         "FILE: runtime.channels_last takes true or false, not 'maybe'"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_refused_with_file_and_field(
    tmp_path: Path, text: str, sentence: str
) -> None:
    assert fault(tmp_path, text) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("loss: {name: hinge}",
         f"FILE: loss.name takes one of {', '.join(LOSSES)}, not 'hinge'"),
        ("loss: {class_weights: effective}",
         "FILE: loss.class_weights takes one of none, effective_number, inverse, not "
         "'effective'; did you mean effective_number?"),
        ("sampler: {name: balanced}",
         f"FILE: sampler.name takes one of {', '.join(SAMPLERS)}, not 'balanced'; "
         "did you mean class_balanced?"),
        ("data: {on_bad_photo: skp}",
         "FILE: data.on_bad_photo takes one of stop, skip, not 'skp'; did you mean skip?"),
        ("data: {competition: inaturalist-2017}",
         "FILE: data.competition: unknown name 'inaturalist-2017'; "
         f"did you mean inaturalist-2021? valid: {', '.join(sorted(COMPETITIONS))}"),
        ("data: {competition: x}",
         f"FILE: data.competition: unknown name 'x'; valid: {', '.join(sorted(COMPETITIONS))}"),
    ],
)  # fmt: skip
def test_an_unknown_choice_lists_the_valid_ones(tmp_path: Path, text: str, sentence: str) -> None:
    assert fault(tmp_path, text) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed: -1", "seed: -1 is less than 0; give 0 or more"),
        ("batch_size: 0", "batch_size: 0 is less than 1; give 1 or more"),
        ("data: {workers: -1}", "data.workers: -1 is less than 0; give 0 or more"),
        ("data: {bad_photo_limit: 2}", "data.bad_photo_limit: 2.0 is not within 0 and 1"),
        ("data: {holdout: 2}", f"data.holdout: '2' is not {HOLDOUTS}"),
        ("data: {holdout: fold:3/2}", f"data.holdout: 'fold:3/2' is not {HOLDOUTS}"),
        ("sampler: {epoch_size: 0}", "sampler.epoch_size: 0 is less than 1; give 1 or more"),
        ("transforms: {image_size: 4}", "transforms.image_size: 4 is less than 8; give 8 or more"),
        ("transforms: {pad: -1}", "transforms.pad: -1 is less than 0; give 0 or more"),
        ("transforms: {crop_pct: 2}", "transforms.crop_pct: 2.0 is not within 0.05 and 1"),
        ("model: {dropout: 1}", "model.dropout: 1.0 is not within 0 and 0.99"),
        ("sampler: {beta: 1}", "sampler.beta: 1.0 is not within 0 and 0.999999"),
        ("sampler: {threshold: 0}",
         "sampler.threshold: 0.0 is not above 0; give a positive number"),
        ("loss: {tau: 11}", "loss.tau: 11.0 is not within 0 and 10"),
        ("loss: {beta: 1}", "loss.beta: 1.0 is not within 0 and 0.999999"),
        ("loss: {max_margin: 2}", "loss.max_margin: 2.0 is not within 0 and 1"),
        ("loss: {gamma: -1}", "loss.gamma: -1.0 is not within 0 and 10"),
        ("loss: {mitigation: -1}", "loss.mitigation: -1.0 is not within 0 and 10"),
        ("loss: {compensation: -1}", "loss.compensation: -1.0 is not within 0 and 10"),
        ("optim: {lr_per_256: 0}",
         "optim.lr_per_256: 0.0 is not above 0; give a positive number"),
        ("optim: {lr_per_256: .inf}",
         "optim.lr_per_256: inf is not above 0; give a positive number"),
        ("optim: {step_factor: 2}", "optim.step_factor: 2.0 is not within 0 and 1"),
        ("optim: {weight_decay: .nan}", "optim.weight_decay: nan is less than 0; give 0 or more"),
        ("runtime: {log_every: 0}", "runtime.log_every: 0 is less than 1; give 1 or more"),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused_with_the_range(
    tmp_path: Path, text: str, sentence: str
) -> None:
    assert fault(tmp_path, text) == f"FILE: {sentence}"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("[a, 1]", "takes a number, not 'a'"),
        ("[null, 1]", "takes a number, not null"),
        ("[true, 1]", "takes a number, not true"),
        ("[[1, 2], 1]", "takes a single value, not the list [1, 2]"),
        ("[0.1]", "takes 2 numbers, [a, b], not [0.1]"),
        ("[0.1, 0.2, 0.3]", "takes 2 numbers, [a, b], not [0.1, 0.2, 0.3]"),
        ("0.3", "takes 2 numbers, [a, b], not 0.3"),
    ],
)
def test_a_bad_element_or_a_wrong_length_of_a_list_is_refused(
    tmp_path: Path, value: str, sentence: str
) -> None:
    assert fault(tmp_path, f"transforms: {{scale: {value}}}") == (
        f"FILE: transforms.scale {sentence}"
    )


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("160", "takes a list of numbers, [a, b], not 160"),
        ("[160, x]",
         "takes a whole number, not 'x'"),
        ("[160, 1.5]", "takes a whole number, not 1.5"),
        ("[[160], 180]", "takes a single value, not the list [160]"),
    ],
)  # fmt: skip
def test_a_list_of_any_length_holds_whole_numbers(
    tmp_path: Path, value: str, sentence: str
) -> None:
    found = fault(tmp_path, f"optim: {{milestones: {value}}}")
    assert found.removeprefix("FILE: optim.milestones ") == sentence


@pytest.mark.parametrize("milestones", ["[0, 5]", "[5, 5]", "[5, 3]", "[-1]"])
def test_milestones_ascend_from_the_first_epoch(tmp_path: Path, milestones: str) -> None:
    shown = milestones.strip("[]").replace(",", "")
    assert fault(tmp_path, f"optim: {{milestones: {milestones}}}") == (
        f"FILE: optim.milestones: {shown} do not ascend from 1; give each epoch once, in order"
    )


def test_a_milestone_lies_within_the_training(tmp_path: Path) -> None:
    text = "epochs: 180\noptim: {milestones: [160, 180]"
    assert fault(tmp_path, text + ", schedule: step}") == (
        "FILE: optim.milestones (180) must be less than epochs (180); "
        "lower the first or raise the second"
    )
    assert read_config(written(tmp_path, text + "}")).optim.milestones == (160, 180)


def test_crop_pad_takes_a_test_photo_whole(tmp_path: Path) -> None:
    transforms = read_config(written(tmp_path, "transforms: {crop_pct: 0.5}")).transforms
    assert transforms.test_crop_pct == 0.5
    transforms = read_config(written(tmp_path, "transforms: {crop_pct: 0.5, crop: pad}")).transforms
    assert transforms.test_crop_pct == 1


def test_a_range_must_be_positive_and_ascending_and_a_scale_at_most_one(tmp_path: Path) -> None:
    assert fault(tmp_path, "transforms: {ratio: [2, 1]}") == (
        "FILE: transforms.ratio: 2 1 is not a range; give two numbers above 0, the smaller first"
    )
    assert fault(tmp_path, "transforms: {scale: [0.5, 1.2]}") == (
        "FILE: transforms.scale: 1.2 is not within 0 and 1"
    )


def test_two_fields_that_contradict_each_other_are_both_named_with_the_remedy(
    tmp_path: Path,
) -> None:
    assert fault(tmp_path, "epochs: 2\noptim: {warmup_epochs: 2}") == (
        "FILE: optim.warmup_epochs (2) must be less than epochs (2); "
        "lower the first or raise the second"
    )
    assert fault(tmp_path, "loss: {name: ldam}") == (
        "FILE: loss.name ldam needs model.head cosine, and model.head is linear; "
        "set model.head cosine"
    )
    assert fault(tmp_path, "loss: {name: seesaw}\ntransforms: {cutmix: 1}") == (
        "FILE: loss.name seesaw weighs every species against the one true species of a photo, and "
        "mixed photos show two; set transforms.mixup 0 and transforms.cutmix 0"
    )


TWICE = "correct for the long tail twice; use"
MEANT = "or say loss.correct_twice true if that is meant"


@pytest.mark.parametrize(
    ("sampler", "loss", "sentence"),
    [
        ("class_balanced", "name: logit_adjusted, prior: counts",
         f"class_balanced and loss.prior counts {TWICE} loss.prior draws, {MEANT}"),
        ("square_root", "name: balanced_softmax, prior: counts",
         f"square_root and loss.prior counts {TWICE} loss.prior draws, {MEANT}"),
        ("repeat_factor", "name: balanced_bce, prior: counts",
         f"repeat_factor and loss.prior counts {TWICE} loss.prior draws, {MEANT}"),
        ("class_balanced, after: 80%", "name: logit_adjusted, prior: counts",
         f"class_balanced after 80% and loss.prior counts {TWICE} sampler.name instance, {MEANT}"),
        ("effective_number", "class_weights: inverse",
         f"effective_number and loss.class_weights inverse {TWICE} loss.class_weights none, "
         f"{MEANT}"),
        ("progressive", "name: focal, class_weights: effective_number, after: 80%",
         f"progressive and loss.class_weights effective_number {TWICE} loss.class_weights none, "
         f"{MEANT}"),
    ],
)  # fmt: skip
def test_correcting_twice_is_refused_unless_the_config_says_that_it_is_meant(
    tmp_path: Path, sampler: str, loss: str, sentence: str
) -> None:
    text = f"sampler: {{name: {sampler}}}\nloss: {{{loss}"
    assert fault(tmp_path, text + "}") == f"FILE: sampler.name {sentence}"
    assert read_config(written(tmp_path, text + ", correct_twice: true}")).loss.correct_twice


@pytest.mark.parametrize(
    ("sampler", "loss"),
    [
        ("instance", "name: logit_adjusted, prior: counts"),
        ("instance", "name: focal, class_weights: inverse, after: 80%"),
        ("class_balanced", "name: logit_adjusted, prior: counts, tau: 0"),
        ("square_root", "name: balanced_softmax"),
        ("square_root", "name: logit_adjusted, prior: field.csv"),
        ("class_balanced, after: 80%", "prior: counts"),
        ("progressive", "name: seesaw"),
    ],
)
def test_correcting_once_is_welcome(tmp_path: Path, sampler: str, loss: str) -> None:
    read_config(written(tmp_path, f"sampler: {{name: {sampler}}}\nloss: {{{loss}}}"))


@pytest.mark.parametrize(
    ("sampler", "shown"),
    [("progressive", "progressive"), ("square_root, after: 80%", "square_root after 80%")],
)
@pytest.mark.parametrize("loss", ["logit_adjusted", "balanced_softmax", "balanced_bce"])
def test_a_prior_of_draws_that_change_cannot_be_taken_off(
    tmp_path: Path, sampler: str, shown: str, loss: str
) -> None:
    assert fault(tmp_path, f"sampler: {{name: {sampler}}}\nloss: {{name: {loss}}}") == (
        f"FILE: loss.prior draws: the draws of sampler.name {shown} change during training and "
        f"have no one prior that {loss} could take off; use sampler.name instance, or loss.name ce"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sampler: {after: 80%}",
         "sampler.after 80% waits for draws that sampler.name instance begins with; name another "
         "sampler, or leave sampler.after unset"),
        ("loss: {after: 80%}",
         "loss.after 80% waits for loss.class_weights, which are none; set loss.class_weights, or "
         "leave loss.after unset"),
        ("loss: {name: balanced_softmax, tau: 0.5}",
         "loss.tau 0.5: balanced_softmax is logit_adjusted at tau 1; set loss.name logit_adjusted"),
        ("loss: {name: logit_adjusted, class_weights: inverse}",
         "loss.class_weights inverse go with loss.name ce, focal and ldam; logit_adjusted corrects "
         "for the long tail by itself: set loss.class_weights none"),
        ("loss: {name: seesaw, class_weights: effective_number}",
         "loss.class_weights effective_number go with loss.name ce, focal and ldam; seesaw "
         "corrects for the long tail by itself: set loss.class_weights none"),
        ("loss: {name: seesaw, label_smoothing: 0.1}",
         "loss.name seesaw weighs every species against the one true species of a photo, and "
         "label smoothing names them all; set loss.label_smoothing 0"),
        ("epochs: 100\nsampler: {name: square_root, after: 160}",
         "sampler.after (160) must be less than epochs (100); lower the first, or give a share of "
         "the training (80%)"),
        ("epochs: 160\nloss: {class_weights: inverse, after: 160}",
         "loss.after (160) must be less than epochs (160); lower the first, or give a share of "
         "the training (80%)"),
    ],
)  # fmt: skip
def test_a_sampler_or_loss_that_contradicts_itself_names_the_remedy(
    tmp_path: Path, text: str, sentence: str
) -> None:
    assert fault(tmp_path, text) == f"FILE: {sentence}"


@pytest.mark.parametrize("after", ["0.8", "0", "0%", "100%", "80 %", "-3", "x", "%", "1e2"])
@pytest.mark.parametrize("field", ["sampler.after", "loss.after"])
def test_an_after_is_a_share_or_a_number_of_epochs(tmp_path: Path, field: str, after: str) -> None:
    assert fault(tmp_path, "", {field: after}) == (
        f"FILE: {field}: {after!r} is neither a share of the training between 0% and 100% (80%) "
        "nor a number of epochs (160)"
    )


@pytest.mark.parametrize(
    ("after", "epochs", "first"),
    [(None, 9, 0), ("80%", 200, 160), ("80%", 90, 72), ("70%", 10, 7), ("80%", 7, 5), ("80%", 1, 0),
     ("99.9%", 1000, 999), ("33.3%", 3, 0), ("160", 200, 160), ("1", 2, 1)],
)  # fmt: skip
def test_a_share_of_the_training_becomes_whole_epochs(
    after: str | None, epochs: int, first: int
) -> None:
    assert switch_epoch(after, epochs) == first


@pytest.mark.parametrize("name", ["nowhere.yaml", "config.yaml/below"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    written(tmp_path, "seed: 1")
    path = tmp_path / name
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: there is no such config file$"):
        read_config(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed: 1\nseed: 2", "the key seed stands twice, again in line 2"),
        ("optim:\n  name: sgd\n  name: sgd", "the key name stands twice, again in line 3"),
        ("1: 2", "the key 1 in line 1 is not a name"),
        ("? [a]\n: 1", "the key ['a'] in line 1 is not a name"),
        ("seed: &x 1\nepochs: *x", "aliases (*name) are not allowed"),
        ("seed: " + "[" * 5000, f"nested deeper than {DEEPEST_LEVEL} levels"),
        ("seed: !!python/object/apply:os.system ['true']",
         "tags (tag:yaml.org,2002:python/object/apply:os.system) are not allowed; write the plain "
         "value"),
        ("seed: !!int '1'",
         "tags (tag:yaml.org,2002:int) are not allowed; write the plain value"),
        ("epochs: 2\nseed: 0x" + "f" * 5000, "the number in line 2 has more than 64 bits"),
        ("optim:\n  <<: {lr_per_256: 1}",
         "could not determine a constructor for the tag 'tag:yaml.org,2002:merge' in "
         '"<byte string>", line 2, column 3: <<: {lr_per_256: 1} ^'),
        ("seed: [",
         "while parsing a flow node expected the node content, but found '<stream end>' in "
         '"<byte string>", line 1, column 8: seed: [ ^'),
        (b"seed: \xff",
         'unacceptable character #x00ff: invalid start byte in "<byte string>", position 6'),
        ("seed: 1\n---\nseed: 2",
         'expected a single document in the stream in "<byte string>", line 1, column 1: '
         'seed: 1 ^ but found another document in "<byte string>", line 2, column 1: --- ^'),
    ],
)  # fmt: skip
def test_yaml_beyond_plain_nested_keys_is_refused(
    tmp_path: Path, text: str | bytes, sentence: str
) -> None:
    assert fault(tmp_path, text) == f"FILE: not a config: {sentence}"


@pytest.mark.parametrize(("text", "shown"), [("[1, 2]", "[1, 2]"), ("just text", "'just text'")])
def test_yaml_that_is_no_mapping_is_refused(tmp_path: Path, text: str, shown: str) -> None:
    sentence = fault(tmp_path, text)
    assert sentence == f"FILE: a config is a list of 'key: value' lines, not {shown}"


@pytest.mark.parametrize("text", ["seed: '{n}'", "data: {{band_edges: [1, '{n}']}}"])
def test_a_number_that_no_run_could_write_down_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="takes a number of at most 64 bits"):
        read_config(written(tmp_path, text.format(n=2**63)))
    read_config(written(tmp_path, text.format(n=2**63 - 1)))


def test_a_file_too_large_for_a_config_is_refused(tmp_path: Path) -> None:
    assert fault(tmp_path, "#" * (LARGEST_FILE + 1)) == (
        "FILE: 100,001 bytes, more than the 100,000 of such a file; give another"
    )


@pytest.mark.parametrize("text", ["", "# nothing", "optim:\n  # all commented out\ndata:"])
def test_an_empty_file_or_section_means_the_defaults(tmp_path: Path, text: str) -> None:
    assert read_config(written(tmp_path, text)) == Config()


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "'0.001'"])
def test_a_number_may_be_written_in_any_usual_way(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, f"optim: {{lr_per_256: {text}}}")
    assert read_config(path).optim.lr_per_256 == 0.001


def test_every_value_of_a_yaml_reaches_its_field(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, CHANGED))
    plain, defaults = config.to_dict(), Config().to_dict()
    for name, value in plain.items():
        if not isinstance(value, dict):
            assert value != defaults[name], name
            continue
        # Not shard, which goes with neither stages nor ema_decay, nor options of later parts.
        for field in set(FIRST_FIELDS.get(name, value)) - {"shard"}:
            assert value[field] != defaults[name][field], f"{name}.{field}"
    assert config.data.root == Path("some/where")
    assert config.transforms.scale == (0.25, 0.75)
    assert config.optim.lr_per_256 == 1e-5
    assert config.runtime.channels_last is False


@pytest.mark.parametrize("text", ["", CHANGED], ids=["defaults", "changed"])
def test_a_config_written_as_yaml_reads_back_as_an_equal_config(tmp_path: Path, text: str) -> None:
    config = read_config(written(tmp_path, text))
    again = read_config(written(tmp_path, config.to_yaml()))
    assert again == config
    assert again.digest == config.digest


def test_overrides_are_laid_over_the_file_with_dots_and_dashes(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 1\noptim: {momentum: 0.5, lr_per_256: 1e-2}")
    config = read_config(
        path,
        {"optim.lr-per-256": 1e-3, "epochs": "7", "transforms.scale": (0.5, 1.0), "data.root": "x"},
    )
    assert config.optim.lr_per_256 == 1e-3
    assert config.optim.momentum == 0.5
    assert (config.seed, config.epochs) == (1, 7)
    assert config.transforms.scale == (0.5, 1.0)
    assert config.data.root == Path("x")


def test_merging_overrides_leaves_the_tree_as_it_was() -> None:
    tree = {"optim": {"momentum": 0.5}}
    assert merge(tree, {"optim.momentum": 0.6}) == {"optim": {"momentum": 0.6}}
    assert tree == {"optim": {"momentum": 0.5}}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"optim.momentun": 1}, "FILE: unknown key optim.momentun; did you mean optim.momentum?"),
        ({"momentum": 1}, "FILE: unknown key momentum; did you mean optim.momentum?"),
        ({"seed.x": 1}, "FILE: seed takes a single value, it has no keys below it"),
        ({"a.b.c": 1}, f"FILE: unknown key a; valid keys: {SECTIONS}"),
        ({"epochs": "x"}, "FILE: epochs takes a whole number, not 'x'"),
    ],
)
def test_a_bad_override_is_refused_like_a_bad_line(
    tmp_path: Path, overrides: dict[str, Any], sentence: str
) -> None:
    assert fault(tmp_path, "seed: 1", overrides) == sentence


IGNORED_BY_THE_DIGEST = {
    "data.root": "/x",
    "data.workers": 3,
    "data.worker_kind": "processes",
    "data.on_bad_photo": "skip",
    "data.keep_photos": True,
    "data.bad_photo_limit": 0.5,
    "data.band_edges": (10, 50),
    "runtime.log_every": 1,
    "runtime.checkpoint_minutes": 2.0,
    "runtime.checkpoint_steps": 7,
}


NEEDED_BY = {
    "optim.accumulate": {"optim.device_batch": 3},
    "optim.device_batch": {"optim.accumulate": "auto"},
    "sampler.after": {"sampler.name": "square_root"},
    "loss.after": {"loss.class_weights": "effective_number"},
}


def test_the_digest_ignores_where_the_data_lies_and_who_reads_it() -> None:
    def digest(fields: dict[str, Any]) -> str:
        return build(merge({}, fields), "test").digest

    same = IGNORED_BY_THE_DIGEST
    assert re.fullmatch("[0-9a-f]{12}", digest({}))
    assert {digest({key: value}) for key, value in same.items()} == {digest({})}


def test_a_run_of_version_0_1_0_keeps_its_digest(tmp_path: Path) -> None:
    assert (Config().digest, Config().digest_without_holdout) == ("a320d236cb15", "633064f20f52")
    config = read_config(written(tmp_path, CHANGED))
    assert (config.digest, config.digest_without_holdout) == ("c1c697fd7c18", "52d2a052c716")


def test_the_digest_without_holdout_is_that_of_all_folds_and_of_no_other_config() -> None:
    def digest(fields: dict[str, Any]) -> str:
        return build(merge({}, fields), "test").digest_without_holdout

    parts = ("none", "0.3", "fold:1/5", "fold:2/5")
    assert {digest({"data.holdout": part}) for part in parts} == {digest({})}
    assert digest({"data.holdout_seed": 1}) != digest({})
    assert digest({"seed": 1}) != digest({})


def test_the_digest_changes_with_every_other_field(tmp_path: Path) -> None:
    path = written(tmp_path, "data: {holdout: none}")  # which train+val asks for
    digests = [read_config(path).digest, read_config(path, {"data.holdout": "fold:2/5"}).digest]
    for name, value in yaml.safe_load(CHANGED).items():
        fields = {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {}
        for key, changed in (fields or {name: value}).items():
            if key not in IGNORED_BY_THE_DIGEST and key != "data.holdout":
                needed = NEEDED_BY.get(key, {})
                digests.append(read_config(path, {**needed, key: changed}).digest)
    assert len(digests) > 30
    assert len(set(digests)) == len(digests)


def test_the_learning_rate_follows_the_global_batch_as_told(tmp_path: Path) -> None:
    path = written(tmp_path, "optim: {lr_per_256: 0.1}")
    rates = {
        scaling: read_config(path, {"optim.lr_scaling": scaling}).optim.learning_rate(1024)
        for scaling in ("linear", "sqrt", "none")
    }
    assert rates == {"linear": 0.4, "sqrt": 0.2, "none": 0.1}


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("none", None), ("0.2", 0.2), ("fold:1/5", (1, 5)), ("fold:5/5", (5, 5))],
)
def test_a_holdout_has_three_forms(text: str, parsed: object) -> None:
    assert parse_holdout(text) == parsed


@pytest.mark.parametrize(
    "text", ["", "0", "1", "-0.2", "nan", "inf", "None", "fold:0/5", "fold:6/5", "fold:1/1",
             "fold:1", "fold:a/b", "20%"],
)  # fmt: skip
def test_any_other_holdout_is_refused_and_the_three_forms_listed(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_holdout(text)
    assert str(caught.value) == f"data.holdout: {text!r} is not {HOLDOUTS}"


def test_there_are_shipped_configs() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_config_parses_and_says_source_cost_expectation_and_command(path: Path) -> None:
    read_config(path)
    opening = path.read_text().splitlines()[:4]
    for line, word in zip(opening, ("source", "cost", "expected", "command"), strict=True):
        assert line.startswith(f"# {word}"), f"{path}: {line!r}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "data: {train_on: train+val}",
            "data.train_on train+val is for the final fit and data.holdout 0.2 keeps photos from "
            "it; set data.holdout none",
        ),
        (
            "data: {band_edges: [100, 20]}",
            "data.band_edges: 100 20 is not a range; give two numbers above 0, the smaller first",
        ),
    ],
)
def test_contradictions_in_data_name_the_remedy(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_config(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("limit", "n_photos", "allowed"),
    [(0.001, 12, 3), (0.001, 999, 3), (0.001, 3, 2), (0.001, 1, 0), (0.001, 10_000, 10),
     (0.1, 30, 3), (0.29, 100, 29), (0.0, 10_000, 0), (1.0, 2, 2)],
)  # fmt: skip
def test_a_few_photos_may_be_bad_in_a_set_of_any_size_and_never_all_by_a_share(
    limit: float, n_photos: int, allowed: int
) -> None:
    data = DataConfig(bad_photo_limit=limit)
    data.refuse_too_many([f"photo {n}" for n in range(allowed)], n_photos)
    bad = [f"photo {n}" for n in range(allowed + 1)]
    with pytest.raises(WorldError) as stopped:
        data.refuse_too_many(bad, n_photos)
    text = str(stopped.value)
    assert text.startswith(f"{allowed + 1} of {n_photos} photos cannot be read")
    assert f"allows {allowed}" in text and "--data.bad-photo-limit" in text
    assert text.endswith("the first: photo 0")
    with pytest.raises(WorldError, match=r"listed in run/bad_photos\.json$"):
        data.refuse_too_many(bad, n_photos, "run/bad_photos.json")
