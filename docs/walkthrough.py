"""From a folder of images to a report, cell by cell: python docs/walkthrough.py, or open it as a notebook (jupytext).

It makes small images of its own. For images of yours, all of 32 x 32 pixels: put them into images/CLASS/, name the
classes in CLASSES, and leave out the second cell.
"""

# %% The classes.
from pathlib import Path

CLASSES = ["bottom_left", "bottom_right", "top_left", "top_right"]

# %% Images: 40 of each class, a bright square on noise; the class is the corner of the square.
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

rng = np.random.default_rng(0)
for name in CLASSES:
    folder = Path("images") / name
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(40):
        pixels = rng.integers(0, 120, (32, 32, 3), np.uint8)
        y, x = (2 if "top" in name else 20), (2 if "left" in name else 20)
        pixels[y : y + 8, x : x + 8] += 100
        Image.fromarray(pixels).save(folder / f"{i:03}.png")

# %% A recipe: a quarter of each class is held out for the test. Compiled once, in a second.
from ffcv_prune.data.recipe import load_recipe  # noqa: E402
from ffcv_prune.data.writer import write_dataset  # noqa: E402

Path("squares.yaml").write_text("source: {folder: images}\nsplits: {train: ., test: 25%}\n")
train_file, test_file = write_dataset(load_recipe("squares.yaml"), Path(), Path("betons"))

# %% The loaders: for training, for scores (in order), and for tests. Training could augment; scores must not.
import torch  # noqa: E402
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder  # noqa: E402
from ffcv.loader import OrderOption  # noqa: E402
from ffcv.transforms import Convert, Squeeze, ToTensor, ToTorchImage  # noqa: E402

from ffcv_prune import PrunedLoader, Pruner, RunWriter  # noqa: E402


def pipelines() -> dict[str, list]:
    image = [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage(), Convert(torch.float32)]
    return {"image": image, "label": [IntDecoder(), ToTensor(), Squeeze(1)]}


loader = PrunedLoader(train_file, batch_size=16, order=OrderOption.RANDOM, pipelines=pipelines())
score_loader, test_loader = (
    PrunedLoader(file, batch_size=60, pipelines=pipelines(), drop_last=False) for file in (train_file, test_file)
)

# %% The model, and a pruner: half of the data, chosen every second epoch by UCB, guarded.
EPOCHS = 10
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.BatchNorm2d(3), torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(192, len(CLASSES))
)
guards = {"warmup": 2, "random_share": 0.5}
pruner = Pruner(loader, score_loader, "ucb", keep=0.5, period=2, epochs=EPOCHS, **guards)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=pruner.total_steps())

# %% The loop. RunWriter keeps a log, the selections and, when it ends, a report.
with RunWriter("runs/squares", pruner, test_samples=test_loader.num_samples) as run:
    for epoch in range(EPOCHS):
        swap = pruner.begin_epoch(epoch, model)
        model.train()
        for images, labels in loader:
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        model.eval()
        with torch.inference_mode():
            right = sum((model(images).argmax(1) == labels).sum().item() for images, labels in test_loader)
        accuracy = right / test_loader.num_samples
        run.log(epoch, swap, test_accuracy=accuracy)
        print(f"epoch {epoch}: {len(loader.selection)} samples, test accuracy {accuracy:.2f}")

# %% The report shows which samples were chosen often, and which never.
print("report: runs/squares/report.html")
