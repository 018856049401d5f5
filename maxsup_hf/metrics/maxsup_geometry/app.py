"""The page of the Space."""

from pathlib import Path

from maxsup_hf.hub.evaluate_modules import page

demo = page(Path(__file__).parent)

if __name__ == "__main__":
    demo.launch()
