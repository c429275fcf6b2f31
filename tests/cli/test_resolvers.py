"""Names that Hydra computes for run folders and trials."""

from pathlib import Path

from imgclf.cli.resolvers import trial_folder


def test_names_of_trials_are_readable_and_distinct(tmp_path: Path) -> None:
    name = trial_folder("dataset=cards,model.backbone_kwargs.layers=[4,pool],optimizer.lr=1e-3")
    assert name.startswith("dataset-cards_layers-_4_pool__lr-1e-3-")
    assert trial_folder("a=1,b.c=2", constant="a").startswith("c-2-")
    assert (
        trial_folder("a=1,b.c=2", constant="a")[-10:] == trial_folder("a=1,b.c=2")[-10:] != trial_folder("b.c=2")[-10:]
    )
    assert trial_folder("optimizer.lr=1e-3") != trial_folder("optimizer.lr=1e-4")
    assert trial_folder("a=x/y") != trial_folder("a=x_y") and "/" not in trial_folder("data_dir=/a/b,a=../c")
    assert len(trial_folder(",".join(f"key{i}=value" for i in range(100)))) <= 101
    assert trial_folder("").startswith("trial-")
    (tmp_path / trial_folder("a=1,b.c=2")).mkdir()
    assert trial_folder("a=1,b.c=2", str(tmp_path), "a") == trial_folder("a=1,b.c=2"), "the folder that exists already"
