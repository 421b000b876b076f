# Sets `python` in a job that was handed in by hand: TOOLKIT_PYTHON, else what submitted the run, else python3.
python=${TOOLKIT_PYTHON:-$(cat "${RUN_DIR:-}/python" 2>/dev/null || echo python3)}
if ! "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null; then
  echo "error: $python is not there, or has no torch; set TOOLKIT_PYTHON to the python of the environment" >&2
  exit 2
fi
