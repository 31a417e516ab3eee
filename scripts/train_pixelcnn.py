"""Train the PixelCNN prior: a tokenizer's codes => runs/<name>/pipeline, an ArcVQPixelCNNPipeline.

python scripts/train_pixelcnn.py
accelerate launch scripts/train_pixelcnn.py --config configs/mnist/pixelcnn.yaml
"""

from arcvq.verbs import run_verb

if __name__ == "__main__":
    run_verb("train-pixelcnn")
