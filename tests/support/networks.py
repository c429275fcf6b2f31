"""Trying networks of timm from end to end, each in a process of its own, so that a crash is an outcome too.

    OMP_NUM_THREADS=1 PYTHONPATH=tests python -m support.networks docs/networks.md [family ...]

tries the smallest network of every family (timm's modules), and writes the table into the page.
"""

import json
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from imgclf.config import RunConfig

BEGIN, END = "<!-- the table begins -->", "<!-- the table ends -->"
SIDES = (64, 0)  # the small one is quick; 0: the network's own
FREEZES = ("none", "all", "2")
SECONDS = 400  # for one network at one size
OVERRIDES = (
    *("dataset=folders", "model=timm", "model.pretrained=false", "trainer=cpu", "trainer.max_epochs=1", "report=false"),
    *("trainer.limit_train_batches=1", "dataset.batch_size=4", "dataset.num_workers=0", "optimizer.lr=0.001"),
)

# timm's module -> its smallest network, or nearly so
_NETWORKS = """
beit:beit_base_patch16_224 byoanet:lambda_resnet26t byobnet:mobileone_s0 cait:cait_xxs24_224 coat:coat_tiny
convit:convit_tiny convmixer:convmixer_768_32 convnext:convnext_zepto_rms cpubone:cpubone_nano
crossvit:crossvit_tiny_240 csatv2:csatv2 cspnet:cs3darknet_s cspnext:cspnext_tiny davit:davit_tiny
deepseek_vit:deepseek_vit_412m deit:deit_tiny_patch16_224 densenet:densenet121 dla:dla46x_c dpn:dpn48b
edgenext:edgenext_xx_small efficientformer:efficientformer_l1 efficientformer_v2:efficientformerv2_s0
efficientnet:mobilenetv2_035 efficientvim:efficientvim_m1 efficientvit_mit:efficientvit_b0
efficientvit_msra:efficientvit_m0 eva:eva02_tiny_patch14_224 fasternet:fasternet_t0 fastvit:fastvit_t8
focalnet:focalnet_tiny_srf gcvit:gcvit_xxtiny gemma4_vit:gemma4_vit_167m ghostnet:ghostnet_050
hardcorenas:hardcorenas_a hgnet:hgnetv2_b0 hiera:hiera_tiny_224 hieradet_sam2:sam2_hiera_tiny hrnet:hrnet_w18_small
iformer:iformer_t inception_next:inception_next_atto lcnetv2:lcnetv2_small levit:levit_128s lowformer:lowformer_b0
mambaout:mambaout_femto maxxvit:coatnet_pico_rw_224 metaformer:poolformerv2_s12 mlp_mixer:gmlp_ti16_224
mobilenetv3:lcnet_035 mobilenetv5:mobilenetv5_base mobilevit:mobilevit_xxs mvitv2:mvitv2_tiny
naflexvit:naflexvit_base_patch16_gap nest:nest_tiny nextvit:nextvit_small nfnet:nf_regnet_b0 pit:pit_ti_224
pvt_v2:pvt_v2_b0 qwen3_vit:qwen3_vit_88m rdnet:rdnet_tiny regnet:regnetx_002 repghost:repghostnet_050
repvit:repvit_m0_9 res2net:res2net50_14w_8s resnest:resnest14d resnet:resnet10t resnetv2:resnetv2_18
rexnet:rexnetr_100 selecsls:selecsls42 senet:legacy_seresnet18 sequencer:sequencer2d_s shvit:shvit_s1
sknet:skresnet18 starnet:starnet_s050 swiftformer:swiftformer_xs swin_transformer:swin_tiny_patch4_window7_224
swin_transformer_v2:swinv2_tiny_window8_256 swin_transformer_v2_cr:swinv2_cr_tiny_224 tiny_vit:tiny_vit_5m_224
tnt:tnt_s_patch16_224 tresnet:tresnet_m twins:twins_svt_small vgg:vgg11 visformer:visformer_tiny
vision_transformer:vit_tiny_patch16_224 vision_transformer_hybrid:vit_tiny_r_s16_p8_224
vision_transformer_relpos:vit_relpos_small_patch16_224 vision_transformer_sam:samvit_base_patch16_224
vitamin:vitamin_small_224 volo:volo_d1_224 vovnet:ese_vovnet19b_slim_dw xception:legacy_xception
xception_aligned:xception41 xcit:xcit_nano_12_p16_224
"""


class Outcome(NamedTuple):
    """What came of a `network` at images of `side`: `kind` is works, refused (in the line `text`), fails or crashes."""

    network: str
    side: int
    kind: str
    text: str
    parameters: int
    seconds: float


def families() -> dict[str, str]:
    """Return the network to try of each module of timm; of a module that is new, the first."""
    import timm

    found, chosen = {}, dict(pair.split(":") for pair in _NETWORKS.split())
    for module in timm.list_modules():
        names = [name for name in timm.list_models(module=module) if not name.startswith("test_")]
        found[module] = chosen[module] if chosen.get(module) in names else names[0]
    return found


def try_networks(
    names: list[str], sides: tuple[int, ...] = SIDES, freezes: tuple[str, ...] = FREEZES
) -> Iterator[Outcome]:
    """Yield the outcomes of each network at each of the sides until it works at one, from one process that forks for each.

    Keywords may follow a name: `vit_tiny_patch16_224:{"depth": 1}`.
    """
    command = [
        sys.executable,
        "-m",
        "support.networks",
        "--serve",
        ",".join(map(str, sides)),
        ",".join(freezes),
        *names,
    ]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as server:
        assert server.stdout
        for line in server.stdout:
            if line.startswith("{"):
                yield Outcome(**json.loads(line))
    assert server.returncode == 0


def _serve(names: list[str], sides: list[int], freezes: list[str]) -> None:
    """Import everything once, and print the outcome of each network as a line of JSON."""
    import timm
    import torch
    from support.fabricate import composed, draw_tree

    import imgclf.evaluation.accumulators
    import imgclf.inference.predictor
    import imgclf.training.run  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["IMGCLF_CACHE"] = f"{temporary}/cache"
        os.chdir(temporary)
        colours = draw_tree(Path(temporary, "colours"), {"train": 4, "valid": 1, "test": 1})
        config = composed(*OVERRIDES, f"data_dir='{colours}'")
        for name, _, keywords in (word.partition(":") for word in names):
            model = replace(config.model, backbone=name, backbone_kwargs=json.loads(keywords or "{}"))
            own = timm.get_pretrained_cfg(name).input_size[-1]
            for side in dict.fromkeys(side or own for side in sides):
                outcome = _forked(name, side, partial(_use, replace(config, model=model, image_size=side), freezes))
                print(json.dumps(outcome._asdict()), flush=True)
                if outcome.kind == "works":
                    break


def _forked(name: str, side: int, task: Callable[[], tuple[str, str, int]]) -> Outcome:
    """Run a task in a child process, and return what came of it."""
    began = time.monotonic()
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.write(sender, json.dumps(task()).encode())
        os._exit(0)
    os.close(sender)
    ended = bool(select.select([receiver], [], [], SECONDS)[0])
    if not ended:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(receiver, "rb") as stream:
        answer = stream.read()
    status = os.waitpid(child, 0)[1]
    if answer:
        kind, text, parameters = json.loads(answer)
    elif not ended:
        kind, text, parameters = "crashes", f"no end within {SECONDS} s", 0
    else:
        died = signal.Signals(status & 0x7F).name if status & 0x7F else f"exit status {status >> 8}"
        kind, text, parameters = "crashes", died, 0
    return Outcome(name, side, kind, text, parameters, round(time.monotonic() - began, 1))


def _use(config: "RunConfig", freezes: list[str]) -> tuple[str, str, int]:
    """Train a step with each of the settings `model.freeze`; save, load, predict."""
    from imgclf.errors import ImgclfError

    parameters = 0
    for freeze in freezes:
        folder = Path("run").absolute()
        shutil.rmtree(folder, ignore_errors=True)
        try:
            model = replace(config.model, freeze=int(freeze) if freeze.isdigit() else freeze)
            parameters = _train_and_predict(replace(config, model=model), folder)
        except ImgclfError as error:
            text = str(error)
            if folder.exists() or "\n" in text:
                return "fails", f"freeze={freeze}: refused late or in several lines: {text[:200]}", parameters
            return "refused", text, parameters
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            return "fails", f"freeze={freeze}: {line} ({Path(where.filename).name}:{where.lineno})", parameters
    return "works", "", parameters


def _train_and_predict(config: "RunConfig", folder: Path) -> int:
    """Train one step, compare what was and what wasn't trained with the weights before, and predict from the file."""
    import numpy as np
    import torch

    import imgclf
    from imgclf.models.checkpoint import TRAINED, read_checkpoint
    from imgclf.models.network import count_parameters
    from imgclf.training.classifier import ImageClassifier
    from imgclf.training.run import train

    train(config, folder, [])
    checkpoint = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    network = ImageClassifier(**checkpoint["hyper_parameters"]).network  # as it was before, by its seed
    trained = {key.removeprefix(TRAINED): value for key, value in checkpoint["state_dict"].items()}
    frozen = {key for key, parameter in network.named_parameters() if not parameter.requires_grad}
    before = dict(network.named_parameters())
    changed = {key for key in before if not torch.equal(before[key].detach(), trained[key])}
    assert not changed & frozen, f"frozen, but changed: {sorted(changed & frozen)[0]}"
    assert all(trained[key].isfinite().all() for key in before), "not finite"
    backbone = [key for key in changed if key.startswith("backbone.")]
    assert bool(backbone) == (config.model.freeze != "all"), f"{len(backbone)} tensors of the backbone were trained"
    image = next(Path(str(config.data_dir), "test").rglob("*.png"))
    answer = imgclf.load(folder / "checkpoints" / "best.ckpt", device="cpu").predict_proba(image)
    rows = (folder / "predictions_test.csv").read_text().splitlines()
    expected = next(row for row in rows if image.parent.name in row.split(",")[0]).split(",")
    given = np.array([float(value) for value in expected[-answer.shape[-1] :]])
    np.testing.assert_allclose(answer.ravel(), given, atol=2e-4)
    return count_parameters(network.backbone)[1]


def _row(family: str, tried: list[Outcome]) -> str:
    """Return a family's row of the table: what came of its network at the last side, and at those before."""
    end, failed = tried[-1], [outcome for outcome in tried if outcome.kind != "works"]
    if end.kind == "works":
        notes = ", ".join(f"{outcome.kind} at {outcome.side}" for outcome in failed)
        outcome = f"works ({notes})" if notes else "works"
    else:
        outcome = "; ".join(f"{outcome.kind} at {outcome.side}: {_short(outcome.text)}" for outcome in failed)
    return f"| {family} | {end.network} | {end.parameters:,} | {end.side} | {outcome} | {end.seconds:.0f} |"


def _measured() -> str:
    """Return the line about where and with what the table was measured."""
    import timm
    import torch

    versions = f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    machine = f"one thread of {cpu[1] if cpu else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
    return f"Measured on {date.today().isoformat()}: {machine}, {platform.system()}, {versions}."


def write_page(page: Path, outcomes: dict[str, list[Outcome]]) -> None:
    """Renew the rows of the families that were tried in the table of a page; the others stay."""
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    old, _, rest = rest.partition(END)
    rows = {line.split("|")[1].strip(): line for line in old.splitlines() if line.startswith("| ")}
    rows.pop("family", None)
    rows |= {family: _row(family, tried) for family, tried in outcomes.items()}
    kinds = [row.split("|")[5].split()[0] for row in rows.values()]
    count = ", ".join(
        f"{kinds.count(kind)} {kind}" for kind in ("works", "refused", "fails", "crashes") if kind in kinds
    )
    lines = [f"{len(rows)} families: {count}.", "", "| family | network | parameters | side | outcome | s |"]
    lines += ["|---|---|--:|--:|---|--:|", *(rows[family] for family in sorted(rows)), "", _measured()]
    page.write_text("\n".join([f"{head}{BEGIN}", *lines, f"{END}{rest}"]), encoding="utf-8")


def _short(text: str) -> str:
    """Return an error without the setting that it begins with, fit for a table."""
    return re.sub(r"^model\.backbone=\S+ at image_size=\d+[^:]*: ", "", text.replace("|", "/"))[:160]


def main(arguments: list[str]) -> None:
    """Serve a test, or write the page."""
    if arguments[0] == "--serve":
        _serve(arguments[3:], [int(side) for side in arguments[1].split(",")], arguments[2].split(","))
        return
    page, chosen = Path(arguments[0]), arguments[1:]
    wanted = {family: name for family, name in families().items() if not chosen or family in chosen}
    by_name = {name: family for family, name in wanted.items()}
    outcomes: dict[str, list[Outcome]] = {}
    for outcome in try_networks(list(wanted.values())):
        outcomes.setdefault(by_name[outcome.network], []).append(outcome)
        print(*outcome, flush=True)
        write_page(page, outcomes)


if __name__ == "__main__":
    main(sys.argv[1:])
