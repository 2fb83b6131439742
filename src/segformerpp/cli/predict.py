"""`segformerpp predict`."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING

from segformerpp.arguments import parse_size, parse_time
from segformerpp.cli.images import predict_images
from segformerpp.cli.options import (
    DEFAULT_MODELS,
    INTERRUPTED,
    SUCCESS,
    parse_overlap,
    parse_tile,
    say,
)
from segformerpp.cli.videos import predict_videos
from segformerpp.errors import UsageError

if TYPE_CHECKING:
    from segformerpp.predictor import Predictor


def predict(
    sources: list[str],
    task: str | None = None,
    model: str | None = None,
    merge: str | None = None,
    runtime: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    size: str | None = None,
    tile: str = "auto",
    overlap: str | None = None,
    batch: int = 1,
    out: str = "segmented",
    save: str | None = None,
    classes: str | None = None,
    json: str | None = None,
    start: str | None = None,
    end: str | None = None,
    stride: int = 1,
    reconnect: float = 30.0,
    reuse_match: int = 1,
    boxes: str | None = None,
    detector: str | None = None,
    detector_threshold: float = 0.5,
    flip: bool = False,
    calibrate: str | None = None,
    resume: bool = False,
    offline: bool = False,
    revision: str | None = None,
    quiet: bool = False,
) -> int:
    """Segment images and videos: say of each pixel what it shows. Or find people's keypoints.

    For an image NAME.jpg the folder given by --out gets NAME_labels.png (class numbers),
    NAME_overlay.png (the image under class colours, with a legend), and what else --save names.
    Files appear whole or not at all. Images that cannot be read are named and skipped.

    Videos, streams and cameras become NAME_overlay.mp4, or NAME_color.mp4, with the size, frame
    rate and sound of the source. Live ones are recorded until Ctrl-C, which finishes the file;
    frames that come faster than the network are dropped.

    With a model for poses images get NAME_keypoints.json (COCO's results) and NAME_overlay.png.
    Each image is taken for one person who fills it, unless --boxes says where people are, or
    --detector names what finds them.

    Examples:
      segformerpp predict street.jpg
      segformerpp predict photos/ "scans/*.tif" --out results --save labels,color
      segformerpp predict photos/ --merge fast --resume
      segformerpp predict photos/ --save polygons,overlay --classes road,car
      segformerpp predict huge.png --tile 1024x1024
      segformerpp predict photos/ --precision int8 --calibrate photos/
      segformerpp predict drive.mp4 --start 1:30 --end 2:00
      segformerpp predict rtsp://camera.local/stream --end 60
      segformerpp predict drive.mp4 --merge hq --reuse-match 4
      segformerpp predict 0 --json frames.jsonl
      segformerpp predict jump.jpg --task pose
      segformerpp predict photos/ --task pose --boxes people.json
      segformerpp predict photos/ walk.mp4 --task pose --detector hustvl/yolos-tiny
      segformerpp predict photos/ --model nvidia/segformer-b5-finetuned-cityscapes-1024-1024

    Exit code:
      0 if all went well, 1 if some inputs failed, 2 if the command makes no sense, 130 if it
      was interrupted

    Args:
        sources: images, folders (with all below them but links to folders), patterns in quotes,
            or .txt files with one path per line; video files, patterns that end like them, such as
            "*.mp4", addresses (rtsp://, http:// and the like), and numbers of cameras
        task: segmentation or pose: what the model must be for (default: whatever it is for)
        model: a bundled model (see `segformerpp models`), a weights file, a folder, or a model
            on the Hugging Face hub (default: camvid-b0; lsp-b0 for --task pose)
        merge: what tokens to merge: a preset (see `segformerpp plans`), a YAML file, a keyword
            string, or auto: the preset that is the fastest for your images on this machine, of
            those that keep 98 % of the labels; measured once (default: as saved with the model,
            else none)
        runtime: what executes the network: openvino, the fastest on a processor; torch;
            torch-compiled, which takes a minute or more for each new image size; onnxruntime
            (needs segformerpp[onnx]); or auto, which is torch on a graphics card, else openvino
        precision: f32, bf16, f16, int8 (see --calibrate) or auto, which is f16 on graphics cards,
            and on processors bf16 where that leaves the labels as they are, else f32
        device: cpu, cuda, mps, xpu, gpu (OpenVINO's), or auto, which is a graphics card that
            PyTorch has, else the processor
        threads: processor threads for the network (default: what the runtime chooses)
        size: height and width that the network sees, such as 512x1024; results have the image's
            own size in any case (default: the image's own; for poses, of whom it is the size of a
            person, what the model was trained with)
        tile: height and width of overlapping windows that larger images go through the network
            in, such as 1024x1024; or auto (only where memory demands it) or none (never)
        overlap: pixels that neighbouring windows share at least, such as 256, or 128x256 for
            height and width (default: a quarter of the window)
        batch: how many images of equal size go through the network together, or fewer if --tile
            is auto and memory demands it
        out: folder for the results
        save: what to write, any of labels, overlay, color (class colours alone), probs (class
            probabilities, as a NumPy file) and polygons (the regions of each class, from 64 pixels
            up, as COCO's JSON for annotation tools); of poses keypoints and overlay; of videos
            overlay and color (default: labels,overlay or keypoints,overlay)
        classes: names or numbers of the only classes to show, such as road,car: pixels of others
            are 255 in labels, unchanged in overlay, black in color; probs, polygons and the shares
            of --json leave the others out (default: all)
        json: file for a list with an entry for each image: settings, time, class shares; of videos,
            a line for each frame
        start: where to begin in videos, in seconds or H:MM:SS (default: at the beginning)
        end: where to end in videos; of live sources, how long to record (default: at the end)
        stride: segment every so many-th frame of a video only; each stays until the next
        reconnect: for how many seconds to look for a live source that was lost
        reuse_match: for videos: in so many frames in a row, merge what was matched in the first of
            them: for frames that are alike. Saves the matching, and changes labels where something
            moves (--runtime openvino, onnxruntime or torch; a plan that matches, such as hq)
        boxes: for poses: where people are, as COCO's JSON, or as a text file with a line for each:
            the image's name, x, y, width, height; images that are not in it have nobody
        detector: for poses: what finds people, in videos in every frame: an object detector of
            transformers (needs segformerpp[hf]) that knows persons, as a folder or on the hub
        detector_threshold: how sure it has to be of a person, 0 to 1
        flip: for poses: look at everyone in a mirror too, and take the mean
        calibrate: folder with some of your images, for --precision int8; needed once for each model
            and plan
        resume: skip images whose results are all there, and in the file of --json if it is given;
            with what settings they were made is not looked at
        offline: never look on the hub; take models from the local cache only
        revision: branch, tag or commit of a model on the hub
        quiet: say nothing but what went wrong
    """
    # Here and not above, so that `--help` does not wait for them.
    from segformerpp.data.boxes import read_boxes
    from segformerpp.data.video_sources import split_sources
    from segformerpp.results_folder import ResultsFolder
    from segformerpp.tasks.pose_result import POSE_OUTPUTS
    from segformerpp.tasks.segmentation_result import OUTPUTS
    from segformerpp.videos_folder import Selection, VideosFolder

    network_size = None if size is None else parse_size("size", size)
    tiles = parse_tile(tile)
    overlaps = None if overlap is None else parse_overlap(overlap)
    if task not in (None, *DEFAULT_MODELS):
        raise UsageError(f"task: {' or '.join(DEFAULT_MODELS)}, not {task!r}")
    name = model or DEFAULT_MODELS[task or "segmentation"]
    found = _task(name, offline, revision)
    if task not in (None, found):
        raise UsageError(f"task: {task}, and {name} is a model for {found}")
    outputs = POSE_OUTPUTS if found == "pose" else OUTPUTS
    what = [*outputs][:2] if save is None else re.split(r"\s*,\s*", save.strip())
    people = None if boxes is None else read_boxes(boxes)
    selection = Selection(
        Fraction(0) if start is None else parse_time("start", start),
        None if end is None else parse_time("end", end),
        stride,
        reconnect,
    )
    clips = VideosFolder(out, what, json, outputs)
    given, videos = split_sources(sources, clips.outputs)
    if (boxes or detector) and found != "pose":
        option = "boxes" if boxes else "detector"
        raise UsageError(f"{option}: for models of poses, and {name} is one of segmentation")
    if boxes and detector:
        raise UsageError("boxes: given, or found by a detector; not both")
    if boxes and videos:
        raise UsageError("boxes: for images; in videos a --detector finds people")
    if reuse_match != 1 and given:
        raise UsageError("reuse_match: for videos; images are matched one by one")
    if given and videos and json:
        raise UsageError("json: for images or for videos, not both; work on them in two runs")
    if videos:
        clips.check()
        if "polygons" in what and not given:
            say("polygons are for images; none are made of videos", quiet)

    @cache
    def predictor() -> Predictor:
        from segformerpp.predictor import Predictor

        finder = None
        if detector:
            from segformerpp.integrations.detection import PersonDetector

            finder = PersonDetector(detector, detector_threshold, device, offline)
        return Predictor(
            name,
            merge=merge,
            runtime=runtime,
            precision=precision,
            device=device,
            threads=threads,
            size=network_size,
            tile=tiles,
            overlap=overlaps,
            batch=batch,
            probabilities="probs" in what and bool(given),
            classes=classes,
            flip=flip,
            detector=finder,
            reuse_match=reuse_match,
            calibrate=calibrate,
            offline=offline,
            revision=revision,
        )

    code = SUCCESS
    if given:
        folder = ResultsFolder(out, what, json, resume, outputs)
        code = predict_images(predictor, given, folder, people, quiet)
    if not videos or code == INTERRUPTED:
        return code
    todo = [video for video in videos if not (resume and clips.is_done(video))]
    if not todo:
        say(f"nothing to do: all {len(videos)} videos are done; results in {clips.folder}", quiet)
        return code
    return max(code, predict_videos(predictor(), todo, clips, selection, quiet))


def _task(model: str, offline: bool, revision: str | None) -> str:
    """What a model is for."""
    for task, bundled in DEFAULT_MODELS.items():
        if model == bundled:
            return task
    from segformerpp.checkpoints import open_checkpoint

    return open_checkpoint(model, offline=offline, revision=revision).metadata.task
