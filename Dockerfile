# The images of the operator and of the processes that it runs.
#   docker build --target gateway --tag distserve/gateway:0.1.0 .      (or operator, migrator, engine)
#
#   base ---> trimmed ---> root (one layer, shared) ---------------+
#     `-> tools -+-> packages of each target (requirements.lock) --+--> operator, gateway, ...
#                `-> project (this checkout's wheel) --------------+
#
# BASE is any Debian 12 with a Python 3.11 that has venv: `make images` puts one of its own there
# where no registry can be reached. docs/images.md says how to renew the digest.
ARG BASE=docker.io/library/python:3.11-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b

FROM ${BASE} AS base

# ---- what all images share: C library, shell, Python and certificates --------------------------
FROM base AS trimmed
# Whatever would change the machine has no place in an image that is replaced whole: package
# manager, perl, account and disk tools, pip. dpkg's list stays true for scanners. Those of one
# base that another has not got are passed over by dpkg.
RUN set -eu; \
    dpkg --purge --force-all --no-triggers \
        adduser apt bash debconf debian-archive-keyring e2fsprogs gpgv \
        libapt-pkg6.0 libdb5.3 libext2fs2 libfile-find-rule-perl libgnutls30 libhogweed6 \
        libnettle8 libnumber-compare-perl libp11-kit0 libpam-modules libpam-modules-bin \
        libpam-runtime libperl5.36 libsemanage2 libsepol2 libss2 libtasn1-6 libtext-glob-perl \
        libunistring2 libxxhash0 login logsave mount openssl passwd perl perl-base \
        perl-modules-5.36 python3-distutils python3-lib2to3 python3-pip-whl python3-setuptools-whl \
        python3.11-venv sysvinit-utils tar usrmerge util-linux util-linux-extra \
        > /dev/null 2>&1; \
    for python in /usr/lib/python3.11 /usr/local/lib/python3.11; do \
        rm -rf $python/ensurepip $python/idlelib $python/lib2to3 $python/pydoc_data \
            $python/tkinter $python/turtledemo $python/config-3.11-* \
            $python/site-packages/* $python/dist-packages/*; \
    done; \
    rm -rf /usr/lib/python3/dist-packages/* /usr/share/perl* /usr/share/python-wheels \
        /usr/local/include /usr/local/share/man /usr/local/bin/pip* /usr/local/bin/idle* \
        /usr/local/bin/2to3* /usr/local/bin/wheel /usr/local/bin/python*-config; \
    find /usr/share/doc -type f ! -name copyright -delete; \
    rm -rf /usr/share/info /usr/share/locale /usr/share/man /usr/share/lintian \
        /var/cache/* /var/lib/apt /var/log/* /tmp/* /root/.[a-z]*; \
    echo 'distserve:x:65532:65532:DistServe:/tmp:/usr/sbin/nologin' >> /etc/passwd; \
    echo 'distserve:x:65532:' >> /etc/group; \
    dpkg --purge --force-all --no-triggers dpkg > /dev/null 2>&1; \
    rm -f /etc/*- /etc/shadow /etc/gshadow; \
    find / -xdev -name '__pycache__' -prune -exec rm -rf {} +; \
    python3 -m compileall -qq -j 0 --invalidation-mode unchecked-hash \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
        || echo "some modules of the standard library are left uncompiled"; \
    find / -xdev -perm /6000 -type f -exec chmod a-s {} +

FROM scratch AS root
ARG VERSION=0.1.0
COPY --from=trimmed / /
ENV PATH=/opt/distserve/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
ENTRYPOINT ["distserve"]
LABEL org.opencontainers.image.vendor="DistServe operator" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"

# ---- what installs; none of it reaches an image ------------------------------------------------
FROM base AS tools
RUN python3 -m venv /opt/pip
COPY tools/images/install.sh /opt/

FROM base AS locks
COPY requirements.lock tools/images/subset.py /locks/
COPY tools/images/packages /locks/
RUN cd /locks && python3 subset.py requirements.lock *.txt

FROM tools AS operator-packages
COPY --from=locks /locks/operator.lock /packages.lock
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt sh /opt/install.sh /packages.lock

FROM tools AS gateway-packages
COPY --from=locks /locks/gateway.lock /packages.lock
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt sh /opt/install.sh /packages.lock

FROM tools AS migrator-packages
COPY --from=locks /locks/migrator.lock /packages.lock
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt sh /opt/install.sh /packages.lock

FROM tools AS engine-packages
COPY --from=locks /locks/engine.lock /packages.lock
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt sh /opt/install.sh /packages.lock

# ---- the project, apart from its packages: a commit's layer is small ---------------------------
FROM tools AS build-backend
COPY tools/images/build.lock /packages.lock
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt sh /opt/install.sh /packages.lock

FROM build-backend AS project
COPY LICENSE NOTICE README.md pyproject.toml /source/
COPY manifests/samples /source/manifests/samples
COPY operator /source/operator
COPY runtime /source/runtime
RUN set -eu; \
    pip="/opt/pip/bin/pip --quiet --disable-pip-version-check --python"; \
    SOURCE_DATE_EPOCH=315532800 $pip /opt/distserve/bin/python wheel \
        --no-index --no-deps --no-build-isolation --wheel-dir /wheels /source; \
    # Scripts name their interpreter: it has to be made where it will lie.
    rm -rf /opt/distserve; \
    python3 -m venv --without-pip /opt/distserve; \
    $pip /opt/distserve/bin/python install --no-index --no-deps --no-compile --find-links /wheels \
        distserve; \
    site=lib/python3.11/site-packages; \
    mkdir -p /project/bin /project/$site; \
    cp /opt/distserve/bin/distserve /project/bin/; \
    cp -r /opt/distserve/$site/distserve* /project/$site/; \
    python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash -s /project -p /opt/distserve \
        /project

# ---- the images ----------------------------------------------------------------------------------
FROM root AS operator
COPY --from=operator-packages /opt/distserve /opt/distserve
COPY --from=project /project /opt/distserve
LABEL org.opencontainers.image.title="distserve-operator" \
      org.opencontainers.image.description="Plans, places and keeps DistServeDeployments"
EXPOSE 8080 8081 9443
CMD ["operator", "--help"]

FROM root AS gateway
COPY --from=gateway-packages /opt/distserve /opt/distserve
COPY --from=project /project /opt/distserve
LABEL org.opencontainers.image.title="distserve-gateway" \
      org.opencontainers.image.description="OpenAI API in front of prefill and decode instances"
EXPOSE 8000
CMD ["gateway", "--help"]

FROM root AS migrator
COPY --from=migrator-packages /opt/distserve /opt/distserve
COPY --from=project /project /opt/distserve
LABEL org.opencontainers.image.title="distserve-migrator" \
      org.opencontainers.image.description="Sidecar that moves KV caches between instances"
EXPOSE 8101 8102
CMD ["migrator", "--help"]

FROM root AS engine
COPY --from=engine-packages /opt/distserve /opt/distserve
COPY --from=project /project /opt/distserve
# What the driver puts into the container; which GPUs is the device plugin's to say.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
LABEL org.opencontainers.image.title="distserve-engine" \
      org.opencontainers.image.description="One instance of a model: prefill, decode or both"
EXPOSE 8100
CMD ["engine", "--help"]
