import torch

from trainer.augment import flip_and_crop


def test_every_image_is_a_crop_of_its_padded_self_perhaps_flipped() -> None:
    torch.manual_seed(0)
    images = torch.randint(1, 256, (64, 3, 9, 7), dtype=torch.uint8)
    changed = flip_and_crop(images)
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    seen = set()
    for image, whole in zip(changed, padded, strict=True):
        candidates = {
            (flip, y, x): (whole[:, y : y + 9, x : x + 7].flip(2) if flip else whole[:, y : y + 9, x : x + 7])
            for flip in (False, True) for y in range(9) for x in range(9)
        }  # fmt: skip
        matches = [key for key, candidate in candidates.items() if torch.equal(candidate, image)]
        assert matches
        seen.add(matches[0])
    assert {flip for flip, _, _ in seen} == {False, True}
    assert {y for _, y, _ in seen} == {x for _, _, x in seen} == set(range(9))


def test_equal_seeds_give_equal_images() -> None:
    images = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(flip_and_crop(images))
    assert torch.equal(*results)
