"""Watch a camera, stream or video, and say when there is much of a class in the picture.

python examples/webcam_or_video.py 0 --look-for Car --above 0.05     # a camera; Ctrl-C ends it
python examples/webcam_or_video.py rtsp://camera.local/stream --look-for Pedestrian
python examples/webcam_or_video.py drive.mp4 --look-for Bicyclist --stride 5
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing

import numpy as np

import segformerpp as sfpp
from segformerpp.data.streams import LiveReader
from segformerpp.data.video import VideoReader


def main() -> None:
    """Read frames, segment them, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="a video file, an address, or the number of a camera")
    parser.add_argument("--model", default="camvid-b0", help="bundled name, file, folder or hub id")
    parser.add_argument("--merge", default="hq", help="the merge plan")
    parser.add_argument("--look-for", default="Car", help="name or number of a class")
    parser.add_argument("--above", type=float, default=0.05, help="share of the picture, 0 to 1")
    parser.add_argument("--stride", type=int, default=1, help="take every so many-th frame")
    args = parser.parse_args()

    live = args.source.isdecimal() or "://" in args.source
    reader: LiveReader | VideoReader
    if live:
        source = int(args.source) if args.source.isdecimal() else args.source
        reader = LiveReader(source, stride=args.stride)
    else:
        reader = VideoReader(args.source, stride=args.stride)
    times: list[float] = []

    def images() -> Iterator[np.ndarray]:
        for frame in reader:  # a live one gives the newest frame, and drops what it is too late for
            times.append(float(frame.time))
            yield frame.image

    predict = sfpp.Predictor(args.model, merge=args.merge, classes=args.look_for)
    seen = 0
    with closing(reader):
        for number, result in enumerate(predict.stream(images())):
            share = float(result.shares.sum())
            if share > args.above:
                seen += 1
                print(f"{times[number]:8.2f} s: {share:.1%} {args.look_for}", flush=True)
    print(f"{args.look_for} in {seen} of {len(times)} frames")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("stopped")
