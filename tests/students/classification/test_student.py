"""The student: an ordinary image classifier with Q more outputs, in every architecture, in every process."""

import json
import shutil

import numpy as np
import pytest
import torch
from builders import tiny
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    BeitConfig,
    ConvNextConfig,
    ConvNextV2Config,
    DeiTConfig,
    Dinov2Config,
    EfficientNetConfig,
    LevitConfig,
    MobileNetV1Config,
    MobileNetV2Config,
    PretrainedConfig,
    PvtConfig,
    RegNetConfig,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTImageProcessorPil,
    pipeline,
)

from madkd_hf import MadkdConfig, MadkdForImageClassification
from madkd_hf.students.models.modeling_madkd import AspectClassificationPipeline, head_parameters


CLASSES = {0: "cat", 1: "dog", 2: "cow", 3: "hen"}
STEPS = {"hidden_sizes": [8, 16], "depths": [1, 1]}
BLOCKS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
LEVIT = {"hidden_sizes": [16] * 3, "num_attention_heads": [2] * 3, "depths": [1] * 3, "key_dim": [4] * 3}
EFFICIENT = {"in_channels": [8], "out_channels": [8], "strides": [1], "kernel_sizes": [3], "depthwise_padding": []}
EFFICIENT |= {"num_block_repeats": [1], "expand_ratios": [1], "batch_norm_eps": 1e-9}

ARCHITECTURES = {
    "resnet": tiny.resnet,
    "vit": lambda: ViTConfig(**BLOCKS, intermediate_size=32),
    "deit": lambda: DeiTConfig(**BLOCKS, intermediate_size=32),
    "beit": lambda: BeitConfig(**BLOCKS, intermediate_size=32),
    "dinov2": lambda: Dinov2Config(**BLOCKS),
    "convnext": lambda: ConvNextConfig(**STEPS, num_stages=2),
    "convnextv2": lambda: ConvNextV2Config(**STEPS, num_stages=2),
    "regnet": lambda: RegNetConfig(**STEPS, embedding_size=8, groups_width=8),
    "mobilenet_v1": lambda: MobileNetV1Config(depth_multiplier=0.125, image_size=32),
    "mobilenet_v2": lambda: MobileNetV2Config(depth_multiplier=0.1, image_size=32, depth_divisible_by=4, min_depth=4),
    "efficientnet": lambda: EfficientNetConfig(**EFFICIENT, width_coefficient=0.1, hidden_dim=128, image_size=32),
    "swin": lambda: SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
    ),
    "levit": lambda: LevitConfig(image_size=32, **LEVIT, mlp_ratio=[2] * 3, attention_ratio=[2] * 3),
}


KINDS = ("resnet", "vit", "deit", "levit")  # of heads; the others are run before a release
EVERY = [pytest.param(name, marks=[] if name in KINDS else pytest.mark.slow) for name in ARCHITECTURES]


def student(config: PretrainedConfig, questions: int = 3) -> MadkdForImageClassification:
    bank = tiny.bank(questions) if questions else None
    torch.manual_seed(0)
    model = MadkdForImageClassification.from_backbone(config, CLASSES, bank)
    tiny.widen(model)
    with torch.no_grad():
        for _ in range(4):  # batch norms see some data
            model.train()(torch.randn(4, 3, 32, 32))
    return model.eval()


def pixels(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def outputs(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(pixels()).logits


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to rounding, measured by how far the outputs differ from each other."""
    spread = float(expected.std())
    assert spread > 1e-4  # or equality shows nothing
    torch.testing.assert_close(actual, expected, atol=min(1e-5, spread / 1000), rtol=0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a student and its image processor, and the student's logits for `pixels()`."""
    folder = tmp_path_factory.mktemp("student")
    model = student(ViTConfig(**BLOCKS, intermediate_size=32))
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder, outputs(model)


# Architectures


@pytest.mark.parametrize("name", EVERY)
def test_every_architecture_answers_classes_and_aspects_and_survives_saving(name, tmp_path):
    model = student(ARCHITECTURES[name]())
    with torch.no_grad():
        out = model(pixels())
    assert out.logits.shape == (2, 4) and out.aspect_logits.shape == (2, 3) and out.loss is None

    model.save_pretrained(tmp_path)
    loaded = MadkdForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        again = loaded(pixels())
    assert_same(again.logits, out.logits)
    assert_same(again.aspect_logits, out.aspect_logits)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", EVERY)
def test_to_plain_is_the_transformers_class_with_the_same_class_logits(name, tmp_path):
    model = student(ARCHITECTURES[name]())
    plain = model.to_plain()
    assert type(plain).__module__.startswith("transformers.") and type(plain) is type(model.backbone)
    assert_same(outputs(plain), outputs(model))
    assert plain.config.num_labels == 4 and plain.config.id2label == CLASSES
    widths = head_parameters(model.backbone.config)
    for key, value in plain.state_dict().items():
        wide = model.backbone.state_dict()[key]
        assert torch.equal(value, wide[:4] if key in widths else wide), key
        assert key not in widths or len(wide) == 7

    plain.save_pretrained(tmp_path)
    assert "auto_map" not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert_same(outputs(loaded), outputs(model))


@pytest.mark.parametrize("name", EVERY)
def test_from_scratch_starts_with_the_weights_that_transformers_would_draw(name):
    torch.manual_seed(0)
    model = MadkdForImageClassification.from_backbone(ARCHITECTURES[name](), CLASSES, tiny.bank(3))
    torch.manual_seed(0)
    config = MadkdConfig.backbone_config_for(ARCHITECTURES[name]().to_dict(), [str(i) for i in range(7)])
    expected = AutoModelForImageClassification.from_config(config).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.backbone.state_dict().items())


def test_timm_architectures_work_where_timm_loads(tmp_path):
    pytest.importorskip("timm", exc_type=ImportError)
    config = AutoConfig.for_model("timm_wrapper", architecture="resnet10t", model_args={"in_chans": 3})
    model = student(config)
    assert outputs(model).shape == (2, 4)
    assert_same(outputs(model.to_plain()), outputs(model))


# Building


@pytest.mark.parametrize(("name", "classes"), [("vit", 2), ("deit", 4), ("levit", 7)])  # as many classes, or outputs
def test_a_pretrained_backbone_keeps_every_weight_but_the_head(tmp_path, name, classes):
    config = MadkdConfig.backbone_config_for(ARCHITECTURES[name]().to_dict(), [f"old {i}" for i in range(classes)])
    pretrained = AutoModelForImageClassification.from_config(config)
    tiny.widen(pretrained)
    pretrained.save_pretrained(tmp_path)
    model = MadkdForImageClassification.from_backbone(str(tmp_path), CLASSES, tiny.bank(3))
    assert outputs(model).shape == (2, 4)
    head = head_parameters(model.backbone.config)
    old = pretrained.state_dict()
    for key, value in model.backbone.state_dict().items():
        if key in head:
            assert value.shape[0] == 7
            assert value.ndim == 1 or not torch.equal(value, old[key])
        else:
            assert torch.equal(value, old[key]), key
    assert 1 <= len(head) <= 4


@pytest.mark.parametrize("named", [True, False])
def test_a_student_lends_its_backbone_to_another(tmp_path, named):
    first = student(tiny.resnet())
    first.config.base_model = "you/base" if named else None
    first.save_pretrained(tmp_path)
    second = MadkdForImageClassification.from_backbone(str(tmp_path), {0: "a", 1: "b"}, tiny.bank(2))
    assert type(second.backbone) is type(first.backbone) and outputs(second).shape == (2, 2)
    assert second.config.base_model == first.config.base_model
    head, old = head_parameters(second.backbone.config), first.backbone.state_dict()
    for key, value in second.backbone.state_dict().items():
        assert value.shape[0] == 4 if key in head else torch.equal(value, old[key]), key
    assert outputs(second.to_plain()).shape == (2, 2)
    new = MadkdForImageClassification.from_backbone(str(tmp_path), CLASSES, tiny.bank(3), pretrained=False)
    same = MadkdForImageClassification.from_backbone(first.config, CLASSES, tiny.bank(3))
    assert new.config.base_model is None is same.config.base_model
    assert new.config.backbone_config.to_dict() == same.config.backbone_config.to_dict()


@pytest.mark.parametrize("how", ["pretrained=False", "configuration"])
def test_without_pretraining_all_weights_are_new(tmp_path, how):
    pretrained = AutoModelForImageClassification.from_config(ARCHITECTURES["vit"]())
    pretrained.save_pretrained(tmp_path)
    backbone = pretrained.config if how == "configuration" else str(tmp_path)
    model = MadkdForImageClassification.from_backbone(backbone, CLASSES, tiny.bank(3), pretrained=False)
    matrices = {name: value for name, value in pretrained.state_dict().items() if value.ndim == 2}
    assert len(matrices) > 5
    for name, value in matrices.items():
        assert not torch.equal(model.backbone.state_dict()[name], value), name


def test_the_configuration_of_the_backbone_is_left_as_it_was():
    config = tiny.resnet()
    before = config.to_dict()
    MadkdForImageClassification.from_backbone(config, CLASSES, tiny.bank(3))
    assert config.to_dict() == before


def test_a_student_without_a_bank_is_the_plain_classifier():
    model = student(tiny.resnet(), questions=0)
    out = model(pixels())
    assert out.logits.shape == (2, 4) and out.aspect_logits.shape == (2, 0)
    assert torch.equal(outputs(model.to_plain()), outputs(model))


def test_the_config_knows_classes_aspects_and_bank(tmp_path):
    bank, config = tiny.bank(3), student(tiny.resnet()).config
    config.save_pretrained(tmp_path)
    for each in (config, MadkdConfig.from_pretrained(tmp_path)):
        assert (
            each.num_labels == 4
            and each.id2label == CLASSES
            and each.label2id == {"cat": 0, "dog": 1, "cow": 2, "hen": 3}
        )
        assert each.num_aspects == 3 and each.aspect_bank == bank.fingerprint
        assert (each.aspect_ids, each.aspect_questions) == (bank.ids, bank.questions)
        assert each.keys_to_ignore_at_inference == ["aspect_logits"]
        assert each.backbone_config.num_labels == 7
        assert each.backbone_config.id2label[4] == "aspect: aspect-0"


def test_each_aspect_needs_an_id_and_a_question():
    with pytest.raises(ValueError, match="received 2 ids and 1 questions"):
        MadkdConfig(aspect_ids=["a", "b"], aspect_questions=["Is it red?"])


def test_labels_give_the_class_loss_over_the_classes_alone():
    model, labels = student(tiny.resnet()), torch.tensor([1, 3])
    out = model(pixels(), labels=labels)
    expected = -out.logits.log_softmax(-1)[[0, 1], labels].mean()
    torch.testing.assert_close(out.loss, expected)


# A count of classes of its own


@pytest.mark.parametrize("loaded", [False, True], ids=["a configuration", "from a folder"])
def test_a_configuration_that_counts_its_classes_itself(tmp_path, loaded):
    sizes = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "image_size": 32}
    config = PvtConfig(**sizes)
    assert "num_labels" in PvtConfig.__dataclass_fields__ and config.num_labels == 1000
    if loaded:
        AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path)
    model = MadkdForImageClassification.from_backbone(str(tmp_path) if loaded else config, CLASSES, tiny.bank(3))
    assert model.backbone.classifier.out_features == 7 and outputs(model).shape == (2, 4)
    assert outputs(model.to_plain()).shape == (2, 4) and model.to_plain().config.num_labels == 4
    model.save_pretrained(tmp_path / "student")
    again = outputs(MadkdForImageClassification.from_pretrained(tmp_path / "student"))
    torch.testing.assert_close(again, outputs(model))


class StubbornConfig(ResNetConfig):
    model_type = "stubborn"


class Stubborn(ResNetForImageClassification):
    """It asks nobody how many classes there are."""

    config_class = StubbornConfig

    def __init__(self, config):
        super().__init__(config)
        self.classifier[1] = torch.nn.Linear(config.hidden_sizes[-1], getattr(config, "num_classes", 1000))


class CountedConfig(ResNetConfig):
    model_type = "counted"
    num_classes: int = 1000


class Counted(Stubborn):
    config_class = CountedConfig


RESNET = {name: getattr(tiny.resnet(), name) for name in ("embedding_size", "hidden_sizes", "depths", "layer_type")}
AutoConfig.register("stubborn", StubbornConfig)
AutoModelForImageClassification.register(StubbornConfig, Stubborn)
AutoConfig.register("counted", CountedConfig)
AutoModelForImageClassification.register(CountedConfig, Counted)


def test_a_field_of_another_name_is_set():
    model = MadkdForImageClassification.from_backbone(CountedConfig(**RESNET), CLASSES, tiny.bank(3))
    assert outputs(model).shape == (2, 4) and outputs(model.to_plain()).shape == (2, 4)


def test_a_head_that_cannot_be_widened_is_refused():
    with pytest.raises(ValueError, match="has a fixed number of outputs where 7 were asked for .*another backbone"):
        MadkdForImageClassification.from_backbone(StubbornConfig(**RESNET), CLASSES, tiny.bank(3))
    model = MadkdForImageClassification(MadkdConfig(StubbornConfig(**RESNET), id2label=CLASSES))
    with pytest.raises(ValueError, match="has 1000 outputs where 4 were asked for"):
        model(pixels())
    with pytest.raises(ValueError, match="has a fixed number of outputs where 4 were asked for"):
        model.to_plain()


# Other names, other numbers


def test_other_names_for_the_classes(saved):
    names = {i: f"new {i}" for i in range(4)}
    texts = {str(i): name for i, name in names.items()}
    model = MadkdForImageClassification.from_pretrained(saved[0], id2label=texts)
    assert model.config.id2label == names == model.to_plain().config.id2label
    assert model.config.label2id == {name: i for i, name in names.items()}
    outer = [*names.values(), *(f"aspect: aspect-{i}" for i in range(3))]
    assert list(model.config.backbone_config.id2label.values()) == outer
    assert_same(outputs(model), saved[1])
    auto = AutoModelForImageClassification.from_pretrained(saved[0], id2label=names, label2id=model.config.label2id)
    assert auto.config.id2label == names
    answers = pipeline("image-classification", model=auto, image_processor=str(saved[0]))(tiny.images(1)[0])
    assert {answer["label"] for answer in answers} == set(names.values())
    model.config.id2label = CLASSES
    assert model.to_plain().config.id2label == CLASSES


@pytest.mark.parametrize("asked", [{"num_labels": 2}, {"id2label": {0: "a", 1: "b"}}, {"num_labels": 9}])
def test_another_number_of_classes_needs_a_new_head(saved, tmp_path, asked):
    with pytest.raises(ValueError, match="another number of classes .* ignore_mismatched_sizes=True"):
        MadkdForImageClassification.from_pretrained(saved[0], **asked)
    model = MadkdForImageClassification.from_pretrained(saved[0], **asked, ignore_mismatched_sizes=True)
    count = asked.get("num_labels", 2)
    assert outputs(model).shape == (2, count) and outputs(model.to_plain()).shape == (2, count)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(outputs(MadkdForImageClassification.from_pretrained(tmp_path)), outputs(model))


# What the backbone takes


def test_hidden_states_and_attentions_are_those_of_the_backbone(saved):
    model = MadkdForImageClassification.from_pretrained(saved[0], attn_implementation="eager").eval()
    with torch.no_grad():
        out = model(pixels(), output_hidden_states=True, output_attentions=True)
        bare = model.backbone(pixels(), output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == len(bare.hidden_states) == 2 and len(out.attentions) == 1
    assert all(torch.equal(one, other) for one, other in zip(out.hidden_states, bare.hidden_states))
    assert torch.equal(out.attentions[0], bare.attentions[0])
    assert model(pixels()).hidden_states is None and model(pixels()).attentions is None
    asked = MadkdForImageClassification.from_pretrained(saved[0], output_hidden_states=True).eval()
    assert len(asked(pixels()).hidden_states) == 2
    assert asked(pixels(), output_hidden_states=False).hidden_states is None


def test_a_tuple_holds_what_is_not_none(saved):
    model, labels = MadkdForImageClassification.from_pretrained(saved[0]).eval(), torch.tensor([0, 1])
    out = model(pixels(), labels=labels)
    found = model(pixels(), labels, return_dict=False)
    assert type(found) is tuple and [torch.equal(a, b) for a, b in zip(found, out.values())] == [True] * 3
    assert len(model(pixels(), return_dict=False, output_hidden_states=True)) == 3
    model.config.return_dict = False
    assert type(model(pixels())) is tuple and torch.equal(model(pixels(), return_dict=True).logits, out.logits)


def test_larger_images_where_the_backbone_knows_how(saved):
    model, large = MadkdForImageClassification.from_pretrained(saved[0]), torch.randn(1, 3, 48, 48)
    assert model(large, interpolate_pos_encoding=True).aspect_logits.shape == (1, 3)
    with pytest.raises(ValueError, match="48"):
        model(large)


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_what_a_trainer_says_about_the_loss_does_not_reach_the_backbone(name):
    model, seen = student(ARCHITECTURES[name]()), []
    model.backbone.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    model(pixels(), torch.tensor([0, 1]), num_items_in_batch=2)
    assert seen == [{"pixel_values"}]


# Everybody else's tools


def test_weights_travel_as_safetensors_with_their_code(saved):
    names = {path.name for path in saved[0].iterdir()}
    assert {"model.safetensors", "aspects_of_madkd.py", "configuration_madkd.py", "modeling_madkd.py"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


def test_auto_classes_and_pipeline_need_no_trust_where_the_package_is(saved):
    folder, expected = saved
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert type(model) is MadkdForImageClassification
    assert torch.equal(outputs(model), expected)
    answers = pipeline("image-classification", model=str(folder))(tiny.images(1)[0], top_k=9)
    assert {answer["label"] for answer in answers} == set(CLASSES.values())
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-5)


def test_pipelines_know_the_student(saved, capfd):
    for task in ("image-classification", "aspect-classification"):
        pipeline(task, model=str(saved[0]), trust_remote_code=True)
    assert "is not supported" not in "".join(capfd.readouterr())


def test_a_plain_trainer_with_the_usual_metric_sees_an_ordinary_classifier(tmp_path):
    model = student(tiny.resnet())
    rows = [{"pixel_values": pixels(i)[0], "labels": i % 4} for i in range(6)]
    seen = {}

    def accuracy(prediction):
        seen["shape"] = prediction.predictions.shape
        return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}

    args = TrainingArguments(tmp_path, per_device_eval_batch_size=4, use_cpu=True, report_to=[])
    trainer = Trainer(model, args, eval_dataset=rows, compute_metrics=accuracy)
    assert not trainer.model_accepts_loss_kwargs  # or it would not divide the loss by the accumulation steps
    result = trainer.evaluate()
    with torch.no_grad():
        logits = model(torch.stack([row["pixel_values"] for row in rows])).logits
    labels = torch.tensor([row["labels"] for row in rows])
    assert seen["shape"] == (6, 4)
    assert result["eval_accuracy"] == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))
    assert result["eval_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-5)


def test_the_aspect_pipeline_reads_out_classes_and_answers(saved):
    folder, _ = saved
    image = tiny.images(1)[0]
    look = pipeline("aspect-classification", model=str(folder), trust_remote_code=True)
    answers = look(image, top_k=2)
    assert set(answers) == {"classes", "aspects"}
    assert answers["classes"] == pipeline("image-classification", model=str(folder))(image, top_k=2)
    with torch.no_grad():
        expected = look.model(**look.image_processor(image, return_tensors="pt")).aspect_logits[0].sigmoid()
    found = {aspect["label"]: aspect["score"] for aspect in answers["aspects"]}
    assert [found[name] for name in tiny.bank(3).ids] == pytest.approx(expected.tolist())
    assert list(found.values()) == sorted(found.values(), reverse=True)
    first = answers["aspects"][0]
    assert f"  {first['label']}: {first['score']:.2f}" in str(answers).splitlines()
    assert first["question"] in tiny.bank(3).questions
    many = look([image] * 3, batch_size=2)
    assert len(many) == 3 and len(many[0]["classes"]) == 4


def test_what_a_pipeline_loaded_can_be_saved_again(saved, tmp_path):
    look = pipeline("aspect-classification", model=str(saved[0]), trust_remote_code=True)
    look.model.save_pretrained(tmp_path)
    assert set(MadkdConfig.from_pretrained(tmp_path).custom_pipelines) == {"aspect-classification"}
    look.model.to_plain().save_pretrained(tmp_path / "plain")
    assert "aspect" not in (tmp_path / "plain" / "config.json").read_text()
    look.save_pretrained(tmp_path / "pipeline")
    assert (tmp_path / "pipeline" / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_the_aspect_pipeline_takes_a_student_in_memory():
    model, processor = student(tiny.resnet()), ViTImageProcessorPil(size={"height": 32, "width": 32})
    look = pipeline("aspect-classification", model=model, image_processor=processor)
    assert len(look(tiny.images(1)[0])["aspects"]) == 3
    assert type(look) is AspectClassificationPipeline
    again = AspectClassificationPipeline(model=model, image_processor=processor)
    assert again(tiny.images(1)[0]) == look(tiny.images(1)[0])


def test_the_aspect_pipeline_is_announced_where_the_code_has_it(saved, tmp_path):
    content = json.loads((saved[0] / "config.json").read_text())
    assert set(content["custom_pipelines"]) == {"aspect-classification"}
    shutil.copytree(saved[0], tmp_path / "old")
    del content["custom_pipelines"]  # as an older version wrote it, beside code without the pipeline
    (tmp_path / "old" / "config.json").write_text(json.dumps(content))
    old = MadkdForImageClassification.from_pretrained(tmp_path / "old")
    assert old.config.custom_pipelines == {} and "custom_pipelines" not in old.config.to_dict()
    old.save_pretrained(tmp_path / "new")  # with the code as it is now
    assert json.loads((tmp_path / "new" / "config.json").read_text())["custom_pipelines"]
    student(tiny.resnet(), questions=0).save_pretrained(tmp_path / "none")
    assert "custom_pipelines" not in (tmp_path / "none" / "config.json").read_text()


def test_the_announcement_can_be_written_like_any_setting(saved):
    config = MadkdConfig.from_pretrained(saved[0])
    config.update(config.to_dict())
    assert MadkdConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert MadkdForImageClassification.from_pretrained(saved[0], custom_pipelines={}).config.custom_pipelines == {}
    config.custom_pipelines["aspect-classification"]["pt"] = (AutoModelForImageClassification,)  # as `pipeline` does
    config.to_json_string()
