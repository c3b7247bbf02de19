#!/bin/sh
# Installs locked wheels into /opt/distserve; runs in the build stages of the Dockerfile.
#   install.sh LOCK
# A registry's address and certificates come as the secrets pip.conf and ca.crt, where there are any.
set -eu
export PIP_CONFIG_FILE=/run/secrets/pip.conf
if [ -s /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi

python3 -m venv --without-pip /opt/distserve
# No resolver and no builds: the lock names everything, and everything has wheels.
/opt/pip/bin/pip --quiet --disable-pip-version-check --python /opt/distserve/bin/python install \
    --require-hashes --no-deps --only-binary :all: --no-compile --timeout 60 --requirement "$1"
/opt/pip/bin/pip --disable-pip-version-check --python /opt/distserve/bin/python check
# Only run time is served here: no activation scripts, no headers.
rm -rf /opt/distserve/include /opt/distserve/bin/[Aa]ctivate*
# Found by content, not by date: equal sources are equal bytes, and no start compiles anything.
/opt/distserve/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash \
    /opt/distserve/lib || echo "some modules do not compile on this Python; they are left as they are"
