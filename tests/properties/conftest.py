import sys
from pathlib import Path

# the table model
sys.path.append(str(Path(__file__).parents[1] / "decoding"))
