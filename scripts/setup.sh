# Sourced by the other scripts: makes .venv in the repository's root and installs litseq there, once.
#
#   setup            litseq alone
#   setup dev        litseq with the extra "dev"
#
# A stamp in .venv remembers what was installed; the next call with the same pyproject.toml, constraints.txt
# and extra starts at once. PYTHON names the interpreter (default: python3).

setup() {
    local extra=${1:+[$1]} python=${PYTHON:-python3} stamp wanted
    "$python" - <<'PY' || return 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"the tested versions need Python 3.11 or newer, this is {sys.version.split()[0]}; set PYTHON to one.")
PY
    # one that was cut short while it was made has no pip
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
    wanted=$(cat pyproject.toml constraints.txt scripts/setup.sh | cksum)
    stamp=.venv/.installed-${1:-run}
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "Installing litseq${extra} into .venv (some minutes the first time) ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint constraints.txt --editable ".$extra"
    echo "$wanted" > "$stamp"
}
