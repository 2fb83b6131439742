"""Watch a camera, stream or video, and say when there is much of a class in the picture.

python examples/webcam_or_video.py 0 --look-for Car --above 0.05     # a camera; Ctrl-C ends it
python examples/webcam_or_video.py rtsp://camera.local/stream --look-for Pedestrian
python examples/webcam_or_video.py drive.mp4 --look-for Bicyclist --stride 5
"""

from __future__ import annotations

import argparse
from contextlib import closing

import segformerpp as sfpp
from segformerpp.data.video_sources import split_sources
from segformerpp.videos_folder import Selection, open_reader


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

    left, videos = split_sources([args.source], lambda _: [])
    if left or len(videos) != 1:
        raise sfpp.UsageError(f"{args.source}: not a video, an address or the number of a camera")
    predict = sfpp.Predictor(args.model, merge=args.merge, classes=args.look_for)
    seen = count = 0
    with closing(open_reader(videos[0], Selection(stride=args.stride))) as reader:
        # A live one gives the newest frame; `predict.stream` would read ahead, and be late.
        for frame in reader:
            count += 1
            share = float(predict(frame.image).shares.sum())
            if share > args.above:
                seen += 1
                print(f"{float(frame.time):8.2f} s: {share:.1%} {args.look_for}", flush=True)
    print(f"{args.look_for} in {seen} of {count} frames")


if __name__ == "__main__":
    try:
        main()
    except sfpp.SegformerppError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print("stopped")
