"""A peer's model, random weights in its published network, laid out as the peer looks for it.

Run by the peers' Python, which has their packages and none of ours: `peer_models.py NAME FOLDER`. Prints as JSON what
was made. Times do not depend on weights; what a network sees (patch, spacing, channels) is what counts.
"""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

MISSING_EXIT = 3  # a package is not installed


class Plan(NamedTuple):
    """What nnU-Net plans for a data set. Both are (z, y, x)."""

    spacing_mm: tuple[float, float, float]
    patch_vox: tuple[int, int, int]


# What nnU-Net's planner (2.8.1, 8 GB) makes of 96x512x512 voxels of 2.5x0.8x0.8 mm, the medians of MSD Pancreas
# in nnU-Net's paper: FLARE22's labelled cases are of it.
PANCREAS = Plan((2.5, 0.8, 0.8), (40, 224, 192))
# Those of TotalSegmentator's published models.
TOTAL = Plan((1.5, 1.5, 1.5), (128, 128, 128))
TOTAL_FAST = Plan((3.0, 3.0, 3.0), (112, 112, 128))


def configuration(plan: Plan) -> dict:
    """The `3d_fullres` entry of a plans.json: nnU-Net's own network for that patch and spacing."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    _, strides, kernels, patch_vox, _ = get_pool_and_conv_props(plan.spacing_mm, plan.patch_vox, 4, 999)
    if tuple(patch_vox) != plan.patch_vox:
        raise ValueError(f"nnU-Net cannot halve a patch of {plan.patch_vox}, it takes {patch_vox}")
    stages = len(strides)
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    return {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": plan.patch_vox,
        "median_image_size_in_voxels": plan.patch_vox,
        "spacing": plan.spacing_mm,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**resampling, "order": 3},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "batch_dice": True,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": [min(32 * 2**stage, 320) for stage in range(stages)],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": kernels,
                "strides": strides,
                "n_conv_per_stage": [2] * stages,
                "n_conv_per_stage_decoder": [2] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }


def write_nnunet(folder: Path, plan: Plan, names: Sequence[str], mirrored: bool) -> None:
    """The folder of a trained nnU-Net model, one fold.

    Args:
        folder: Is made.
        plan: Spacing and patch.
        names: Of the classes, background not among them.
        mirrored: Whether it was trained with mirroring, and may therefore mirror in inference.
    """
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    planned = configuration(plan)
    intensities = {"mean": 50.0, "std": 150.0, "median": 50.0, "min": -1000.0, "max": 2000.0}
    intensities |= {"percentile_00_5": -800.0, "percentile_99_5": 1200.0}
    plans = {
        "dataset_name": folder.parent.name,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": plan.spacing_mm,
        "original_median_shape_after_transp": plan.patch_vox,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "configurations": {"3d_fullres": planned},
    }
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {name: label for label, name in enumerate(["background", *names])},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    network = get_network_from_plans(
        *planned["architecture"].values(), input_channels=1, output_channels=len(names) + 1, deep_supervision=False
    )
    checkpoint = {
        "network_weights": network.state_dict(),
        # Of any other trainer nnU-Net imports all it has until it finds it, timm and torchvision too: seconds, and a
        # torchvision for CUDA, as PyPI has it, fails beside a torch for CPUs.
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": (0, 1, 2) if mirrored else None,
    }
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def nnunet(folder: Path) -> dict:
    """nnU-Net's model of 13 organs."""
    write_nnunet(folder, PANCREAS, [f"organ {k}" for k in range(1, 14)], mirrored=True)
    return {"classes": 13, "networks": 1, **PANCREAS._asdict()}


def totalsegmentator(folder: Path, mode: str = "default") -> dict:
    """TotalSegmentator's home, with the models that its task `total` runs in this mode."""
    from totalsegmentator import map_to_binary
    from totalsegmentator.map_tasks_config import TASK_CONFIGS, TASK_ID_WEIGHTS_CONFIGS

    task = TASK_CONFIGS["total"]["sub_modes"][mode]
    plan = TOTAL if mode == "default" else TOTAL_FAST
    all_names = map_to_binary.class_map["total"].values()
    if mode == "default":
        parts = map_to_binary.map_taskid_to_partname_ct
        models = {id_: map_to_binary.class_map_5_parts[parts[id_]].values() for id_ in task["task_id"]}
    else:
        models = {task["task_id"]: all_names}
    for id_, names in models.items():
        data_set = folder / "nnunet" / "results" / TASK_ID_WEIGHTS_CONFIGS[id_]["foldername"]
        model = data_set / f"{task['trainer']}__nnUNetPlans__3d_fullres"
        write_nnunet(model, plan, list(names), mirrored=False)
    settings = {"totalseg_id": "", "send_usage_stats": False, "prediction_counter": 0}
    (folder / "config.json").write_text(json.dumps({**settings, "statistics_disclaimer_shown": True}))
    return {"classes": len(all_names), "networks": len(models), **plan._asdict()}


def totalsegmentator_fast(folder: Path) -> dict:
    """As `totalsegmentator`, of its option --fast."""
    return totalsegmentator(folder, "fast")


def monai(folder: Path, spacing_mm: float = 1.5) -> dict:
    """MONAI's bundle wholeBody_ct_segmentation, with the settings of its published inference.json."""
    import torch
    from monai.networks.nets import SegResNet

    patch_vox = (96, 96, 96)
    network = {
        "spatial_dims": 3, "in_channels": 1, "out_channels": 105, "init_filters": 32,
        "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1], "dropout_prob": 0.2,
    }  # fmt: skip
    before = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureTyped", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [spacing_mm] * 3, "mode": "bilinear"},
        {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True},
        {"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0},
    ]
    after = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {
            "_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
            "nearest_interp": True, "to_tensor": True,
        },
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_ext": ".nii.gz"},
    ]  # fmt: skip
    config = {
        "image": "",
        "output_dir": "",
        "network": {"_target_": "SegResNet", **network},
        "preprocessing": {"_target_": "Compose", "transforms": before},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': @image}]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 1},
        "inferer": {
            "_target_": "SlidingWindowInferer", "roi_size": patch_vox, "sw_batch_size": 1, "overlap": 0.25,
            "padding_mode": "replicate", "mode": "gaussian", "device": "cpu",
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "cpu", "val_data_loader": "@dataloader",
            "network": "@network", "inferer": "@inferer", "amp": True,
            "postprocessing": {"_target_": "Compose", "transforms": after},
        },
        "checkpoint": {
            "_target_": "CheckpointLoader", "load_path": str(folder / "model.pt"), "load_dict": {"model": "@network"},
        },
        "initialize": ["$@checkpoint(@evaluator)"],
        "run": ["$@evaluator.run()"],
    }  # fmt: skip
    folder.mkdir(parents=True)
    torch.save(SegResNet(**network).state_dict(), folder / "model.pt")
    (folder / "inference.json").write_text(json.dumps(config, indent=1))
    return {"classes": 104, "networks": 1, "spacing_mm": [spacing_mm] * 3, "patch_vox": patch_vox}


def monai_lowres(folder: Path) -> dict:
    """As `monai`, of 3 mm."""
    return monai(folder, 3.0)


MODELS = {  # with the packages whose versions matter, the program's own first
    "totalsegmentator": (totalsegmentator, ("TotalSegmentator", "nnunetv2", "torch")),
    "totalsegmentator_fast": (totalsegmentator_fast, ("TotalSegmentator", "nnunetv2", "torch")),
    "nnunet": (nnunet, ("nnunetv2", "torch")),
    "monai": (monai, ("monai", "pytorch-ignite", "torch")),
    "monai_lowres": (monai_lowres, ("monai", "pytorch-ignite", "torch")),
}


def main(name: str, folder: str) -> int:
    """Returns the exit status."""
    make, packages = MODELS[name]
    try:
        versions = {package: version(package) for package in packages}
    except PackageNotFoundError as error:
        print(f"{error.name} is not installed", file=sys.stderr)
        return MISSING_EXIT
    facts = make(Path(folder).absolute())
    print(json.dumps({"packages": versions, **facts}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
