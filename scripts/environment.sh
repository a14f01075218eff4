# Sourced by the scripts beside it: finds a Python and makes the environment.
#
# What may be set:
#   RNNZOO_PYTHON       the Python to make the environment with
#   RNNZOO_VENV         where to make it; .venv in the repository by default
#   RNNZOO_CONSTRAINTS  more requirements, such as 'jax==0.10.2 jaxlib==0.10.2'

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${RNNZOO_VENV:-$root/.venv}
[[ $venv == /* ]] || venv=$PWD/$venv

say() { printf '%s\n' "$*"; }

fail() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# Prints the version and the path of a Python that can make environments. It is
# run to find out: a name on PATH may be a shim with nothing behind it.
describe_python() {
  "$1" -c 'import ensurepip, sys, venv
print("%d.%d" % sys.version_info[:2], sys.executable)' 2>/dev/null
}

# Prints "VERSION PATH" of each Python from 3.11 on, in the order of preference.
working_pythons() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 python \
      "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3; do
    describe_python "$candidate" || continue
  done | awk '{ split($1, v, "."); if (v[1] == 3 && v[2] >= 11) print }'
}

# Prints the path of the Python to use: rather one of the tested versions.
choose_python() {
  local found
  if [[ -n ${RNNZOO_PYTHON:-} ]]; then
    found=$(describe_python "$RNNZOO_PYTHON") ||
      fail "RNNZOO_PYTHON=$RNNZOO_PYTHON is not a working Python with venv."
    say "${found#* }"
    return
  fi
  found=$(working_pythons)
  [[ -n $found ]] ||
    fail 'no working Python 3.11 or newer with the module venv was found (on' \
      'Debian and Ubuntu that is the package python3-venv). Set RNNZOO_PYTHON' \
      'to one.'
  awk '{ split($1, v, "."); if (v[2] > 13) { late = late ? late : $0 }
         else if (!fit) fit = $0 }
       END { $0 = fit ? fit : late; sub(/^[^ ]* /, ""); print }' <<< "$found"
}

# What an environment was made of and for, in one line: if it differs, the
# environment has to be brought up to date.
fingerprint() {
  local sum
  sum=$(cksum < "$root/setup.py")
  say "${sum// /-} $("$venv/bin/python" -V) $root ${RNNZOO_CONSTRAINTS:-}"
}

# make_environment [EXTRA]: makes $venv if need be and installs rnnzoo[EXTRA]
# into it, unless that was done before.
make_environment() {
  local extra=${1:-} stamp=$venv/rnnzoo.stamp python
  if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    if [[ -e $venv && ! -e $venv/pyvenv.cfg ]]; then
      fail "$venv exists and is no environment; remove it or set RNNZOO_VENV."
    fi
    python=$(choose_python) || exit 1
    say "Making $venv with $("$python" -V)."
    "$python" -m venv "$venv" || fail "$python -m venv $venv failed."
    rm -f "$stamp"
  elif [[ -n ${RNNZOO_PYTHON:-} ]] &&
      [[ "$("$RNNZOO_PYTHON" -V 2>&1)" != "$("$venv/bin/python" -V)" ]]; then
    fail "$venv is of $("$venv/bin/python" -V), not of $RNNZOO_PYTHON;" \
      'remove it or set RNNZOO_VENV to another.'
  fi
  if [[ "$(head -n 1 "$stamp" 2>/dev/null)" != "$(fingerprint)" ]]; then
    rm -f "$stamp"
  elif [[ -z $extra ]] || grep -qx "extra $extra" "$stamp"; then
    return
  fi
  say "Installing rnnzoo${extra:+[$extra]} into $venv: a minute or so, once."
  # shellcheck disable=SC2086  # Constraints are words, as on a command line.
  (cd "$root" && "$venv/bin/python" scripts/install.py \
    --editable ".${extra:+[$extra]}" ${RNNZOO_CONSTRAINTS:-}) ||
    fail 'the installation failed; the message above says why.'
  [[ -e $stamp ]] || fingerprint > "$stamp"
  [[ -z $extra ]] || say "extra $extra" >> "$stamp"
}
