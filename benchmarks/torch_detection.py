"""The losses and the detections of torch_detector.py, plainly written in PyTorch.

Images go one after the other through what selects boxes, as in detectron2. Numbers of
boxes vary, or with `Method.fixed` are those of our side, with padding of weight 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks import torch_detector as parts


@dataclasses.dataclass(frozen=True)
class Method:
    """Mask R-CNN around a model of `torch_detector.detector`.

    Attributes:
      torch, ops: the modules torch and torchvision.ops.
      sizes: those of the model, with the `rules` of our side.
      fixed: box and mask head get as many boxes as on our side.
      ordered: samples are the first ones in order, not drawn.
    """

    torch: Any
    ops: Any
    sizes: dict[str, Any]
    fixed: bool = False
    ordered: bool = False

    def losses(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """The five losses, by the names of `detection_losses.losses`."""
        torch, sizes, rules = self.torch, self.sizes, self.sizes["rules"]
        maps = model["backbone"](batch["image"])
        levels = parts.anchors(torch, maps, sizes)
        scored = parts.score(model, maps)
        with torch.no_grad():
            proposed = self._propose(levels, *scored, batch["size"], train=True)
            sampled = [
                self._sample_boxes(*each)
                for each in zip(proposed, batch["objects"], strict=True)
            ]
        out = self._of_anchors(torch.cat(levels), *scored, batch["objects"])
        boxes = [each["boxes"] for each in sampled]
        logits, offsets = parts.classify(torch, self.ops, sizes, model, maps, boxes)
        every = {k: torch.cat([x[k] for x in sampled]) for k in sampled[0]}
        out |= self._of_boxes(logits, offsets, every)
        if self.fixed:
            first = [{k: x[k][: rules["box_positive"]] for k in x} for x in sampled]
        else:
            first = [{k: x[k][x["positive"]] for k in x} for x in sampled]
        boxes = [each["boxes"] for each in first]
        own = torch.cat([each["own"] for each in first]) % sizes["num_classes"]
        logits = parts.masks(torch, self.ops, sizes, model, maps, boxes, own)
        return out | self._of_masks(logits, first, batch["objects"])

    def _propose(self, levels, logits, offsets, size, *, train):
        """Proposals of each image, `[P, 4]`, by falling logit."""
        return [
            self._propose_of_image(
                levels, [x[i] for x in logits], [x[i] for x in offsets], size[i], train
            )
            for i in range(len(size))
        ]

    def _propose_of_image(self, levels, logits, offsets, size, train):
        torch, rules = self.torch, self.sizes["rules"]
        most = rules["train_per_level" if train else "test_per_level"]
        boxes, scores, level = [], [], []
        triples = zip(levels, logits, offsets, strict=True)
        for number, (anchors, logit, offset) in enumerate(triples):
            score, index = logit.topk(min(most, len(logit)))
            boxes.append(parts.decode(torch, anchors[index], offset[index]))
            scores.append(score)
            level.append(torch.full_like(index, number))
        boxes, scores, level = (torch.cat(x) for x in (boxes, scores, level))
        boxes = self.ops.clip_boxes_to_image(boxes, size)
        rows = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        boxes, scores, level = boxes[rows], scores[rows], level[rows]
        overlap = rules["proposal_overlap"]
        rows = self.ops.batched_nms(boxes, scores, level, overlap)
        return boxes[rows[: rules["proposals"]]]

    def _pick(self, mask, most):
        rows = self.torch.nonzero(mask)[:, 0]
        order = self.torch.arange if self.ordered else self.torch.randperm
        return rows[order(len(rows))[:most]]

    def _sample_boxes(self, proposed, objects):
        torch, rules = self.torch, self.sizes["rules"]
        background = self.sizes["num_classes"]
        boxes = torch.cat([proposed, objects["boxes"]])
        overlap, index = self.ops.box_iou(objects["boxes"], boxes).max(dim=0)
        holds = overlap >= rules["box_overlap"]
        positive = self._pick(holds, rules["box_positive"])
        negative = self._pick(~holds, rules["box_samples"] - len(positive))
        rows = torch.cat([positive, negative])
        first = torch.arange(len(rows)) < len(positive)
        sampled = {
            "boxes": boxes[rows],
            "object": index[rows],
            "targets": objects["boxes"][index[rows]],
            "own": torch.where(first, objects["classes"][index[rows]], background),
            "positive": first,
            "valid": torch.ones_like(first),
        }
        if not self.fixed:
            return sampled
        missing = rules["box_samples"] - len(rows)
        return {
            k: torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
            for k, x in sampled.items()
        }

    def _of_anchors(self, anchors, logits, offsets, objects):
        torch, rules = self.torch, self.sizes["rules"]
        logits, offsets = torch.cat(logits, dim=1), torch.cat(offsets, dim=1)
        entropy = error = 0.0
        for logit, offset, own in zip(logits, offsets, objects, strict=True):
            with torch.no_grad():
                overlaps = self.ops.box_iou(own["boxes"], anchors)
                overlap, index = overlaps.max(dim=0)
                best = overlaps.max(dim=1, keepdim=True).values
                positive = overlap >= rules["anchor_high"]
                positive |= ((overlaps == best) & (best > 0)).any(dim=0)
                negative = (overlap < rules["anchor_low"]) & ~positive
                positive = self._pick(positive, rules["anchor_positive"])
                rest = rules["anchor_samples"] - len(positive)
                rows = torch.cat([positive, self._pick(negative, rest)])
                wanted = own["boxes"][index[positive]]
                wanted = parts.encode(torch, anchors[positive], wanted)
                target = (torch.arange(len(rows)) < len(positive)).float()
            entropy += torch.nn.functional.binary_cross_entropy_with_logits(
                logit[rows], target, reduction="sum"
            )
            error += (offset[positive] - wanted).abs().sum()
        count = rules["anchor_samples"] * len(objects)
        return {"objectness": entropy / count, "anchors": error / count}

    def _of_boxes(self, logits, offsets, sampled):
        torch = self.torch
        entropy = torch.nn.functional.cross_entropy(
            logits, sampled["own"], reduction="none"
        )
        rows = torch.nonzero(sampled["positive"])[:, 0]
        wanted = parts.encode(
            torch, sampled["boxes"][rows], sampled["targets"][rows], parts.BOX_WEIGHTS
        )
        error = (offsets[rows, sampled["own"][rows]] - wanted).abs().sum()
        count = sampled["valid"].sum()
        return {
            "classes": (entropy * sampled["valid"]).sum() / count,
            "boxes": error / count,
        }

    def _of_masks(self, logits, sampled, objects):
        torch = self.torch
        with torch.no_grad():
            pairs = zip(sampled, objects, strict=True)
            target = torch.cat([self._crop(*x, logits.shape[-1]) for x in pairs])
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, target, reduction="none"
        ).mean(dim=(1, 2))
        positive = torch.cat([each["positive"] for each in sampled])
        return {"masks": (entropy * positive).sum() / positive.sum().clamp(min=1)}

    def _crop(self, sampled, objects, side):
        """The part of each object's mask that lies in a box, `[R, side, side]`."""
        torch, own = self.torch, objects["boxes"][sampled["object"]]
        boxes = sampled["boxes"]
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0.1)
        at = (torch.arange(side) + 0.5) / side
        at = boxes[:, None, :2] + at[:, None] * sides[:, None]  # [R, side, 2]
        at = 2 * (at - own[:, None, :2]) / (own[:, 2:] - own[:, :2])[:, None] - 1
        x = at[:, None, :, 0].expand(-1, side, side)
        y = at[:, :, None, 1].expand(-1, side, side)
        grid = torch.stack([x, y], dim=-1)
        masks = objects["masks"][sampled["object"]][:, None].float()
        sample = torch.nn.functional.grid_sample
        return (sample(masks, grid, align_corners=False)[:, 0] >= 0.5).float()

    def detect(self, model: Any, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Detections of each image: 'boxes', 'scores', 'classes', 'masks'."""
        torch, sizes = self.torch, self.sizes
        maps = model["backbone"](batch["image"])
        levels = parts.anchors(torch, maps, sizes)
        scored = parts.score(model, maps)
        boxes = self._propose(levels, *scored, batch["size"], train=False)
        logits, offsets = parts.classify(torch, self.ops, sizes, model, maps, boxes)
        moved = torch.cat(boxes)[:, None]
        moved = parts.decode(torch, moved, offsets, parts.BOX_WEIGHTS)
        counts = [len(x) for x in boxes]
        pairs = (logits.softmax(dim=-1)[:, :-1].split(counts), moved.split(counts))
        best = [self._best(*x) for x in zip(*pairs, batch["size"], strict=True)]
        own = torch.cat([x["classes"] for x in best])
        boxes = [each["boxes"] for each in best]
        logits = parts.masks(torch, self.ops, sizes, model, maps, boxes, own)
        split = logits.sigmoid().split([len(x) for x in boxes])
        return [x | {"masks": y} for x, y in zip(best, split, strict=True)]

    def _best(self, scores, boxes, size):
        rules = self.sizes["rules"]
        boxes = self.ops.clip_boxes_to_image(boxes, size)
        rows, own = self.torch.nonzero(scores > rules["min_score"], as_tuple=True)
        scores, boxes = scores[rows, own], boxes[rows, own]
        rows = self.ops.batched_nms(boxes, scores, own, rules["overlap"])
        rows = rows[: rules["detections"]]
        return {"boxes": boxes[rows], "scores": scores[rows], "classes": own[rows]}
