"""A real node on this machine: containerd, kubelet and kube-proxy in namespaces of their own.

    holder (sleep)   keeps a network and a mount namespace
      |- containerd, kubelet, kube-proxy entered both by its pid
    eth0 <-cable-> bridge of the cluster      pods: routed cables (ptp), 10.x.N.0/24

When the last of these processes is gone, the kernel takes interfaces, rules and mounts with them:
nothing of a node can stay behind on the machine except its cgroup and folders. There is no way out
of the cluster's network: what a pod sends elsewhere is refused at once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from tools.cluster import host, images
from tools.cluster.cgroups import make_cgroup
from tools.cluster.errors import CommandFailed
from tools.cluster.home import Home, make_mount_point
from tools.cluster.pki import Pki
from tools.cluster.processes import Process, Processes
from tools.cluster.waiting import run

START_SECONDS = 60.0
IMPORT_SECONDS = 120.0
# An engine's image has gigabytes.
SLOW_IMPORT_BYTES_PER_SECOND = 5e6


@dataclass
class Node:
    """Node `number` of a cluster, counted from 1."""

    home: Home
    number: int
    pki: Pki
    programs: Mapping[str, Path]
    processes: Processes

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def folder(self) -> Path:
        return self.home.folder / self.name

    @property
    def socket(self) -> Path:
        return self.home.run_folder / self.name / "containerd.sock"

    @property
    def address(self) -> str:
        return self.home.addresses.node_address(self.number)

    def start(self, nodes: int, image_archives: Sequence[Path]) -> None:
        """Starts one of `nodes` nodes with these images; its readiness is the caller's wait."""
        for part in ("containerd", "kubelet", "cni", "device-state", "pod-logs"):
            (self.folder / part).mkdir(parents=True)
        self.socket.parent.mkdir(parents=True)
        cgroup = make_cgroup(self.home.addresses.node_cgroup(self.number))
        holder = self._start_holder()
        self._cable(holder.pid, nodes)
        enter = ["nsenter", f"--target={holder.pid}", "--net", "--mount", "--"]
        self._start_containerd(enter)
        for archive in image_archives:
            self.load_image(archive)
        self._start_kubelet(enter, cgroup)
        self._start_kube_proxy(enter)

    def _start_holder(self) -> Process:
        """The process whose namespaces are the node's."""
        # Device plug-ins and CNI's results have fixed paths, which nodes must not share.
        binds = [("device-state", "/var/lib/kubelet"), ("cni", "/var/lib/cni")]
        steps = ["mount --make-rshared /", "ip link set lo up"]
        for source, target in binds:
            make_mount_point(Path(target))
            steps.append(f"mount --bind '{self.folder / source}' {target}")
        ready = self.folder / "namespaces-ready"
        script = " && ".join([*steps, f"touch '{ready}'", "exec sleep infinity"])
        unshare = ["unshare", "--net", "--mount", "--propagation=private", "sh", "-c", script]
        holder = self.processes.start(f"{self.name}-holder", unshare)
        holder.wait_for(f"the namespaces of {self.name}", ready.exists, START_SECONDS)
        return holder

    def _cable(self, holder: int, nodes: int) -> None:
        """A cable to the bridge, and routes to the cluster's networks only."""
        addresses = self.home.addresses
        link, bridge = addresses.node_link(self.number), addresses.bridge
        inner = ["peer", "name", "eth0", "netns", str(holder)]
        run(["ip", "link", "add", link, "type", "veth", *inner])
        run(["ip", "link", "set", link, "master", bridge, "up"])
        # The control plane calls webhooks at their pods.
        run(["ip", "route", "replace", addresses.pods(self.number), "via", self.address])
        commands = [
            f"address add {self.address}/24 dev eth0",
            "link set eth0 up",
            "route add unreachable default",
            # A connection needs a route before kube-proxy's rules turn it towards a pod.
            f"route add {addresses.services} via {addresses.bridge_address}",
        ]
        for other in range(1, nodes + 1):
            if other != self.number:
                hop = addresses.node_address(other)
                commands.append(f"route add {addresses.pods(other)} via {hop}")
        inside = ["nsenter", f"--target={holder}", "--net", "--"]
        run([*inside, "ip", "-batch", "-"], stdin="\n".join(commands) + "\n")
        # icmp_ratelimit: every refusal is told, so no client waits for its own timeout.
        # tcp_orphan_retries: connections that outlive their processes soon let the namespace go.
        settings = {"ip_forward": 1, "icmp_ratelimit": 0, "tcp_orphan_retries": 1}
        lines = [f"echo {value} > /proc/sys/net/ipv4/{name}" for name, value in settings.items()]
        run([*inside, "sh", "-c", " && ".join(lines)])

    def _start_containerd(self, enter: list[str]) -> None:
        self._write_network_config()
        config = self.folder / "containerd.toml"
        config.write_text(self._containerd_config())
        command = [*enter, "containerd", "-c", str(config)]
        containerd = self.processes.start(f"{self.name}-containerd", command)
        containerd.wait_for("containerd's answer", self._containerd_answers, START_SECONDS)

    def _start_kubelet(self, enter: list[str], cgroup: str) -> None:
        config = self.folder / "kubelet.yaml"
        config.write_text(yaml.safe_dump(self._kubelet_config(cgroup)))
        (self.folder / "resolv.conf").write_text("")
        command = [
            *(*enter, str(self.programs["kubelet"]), f"--config={config}"),
            f"--kubeconfig={self.pki.kubeconfig(self.name)}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            f"--root-dir={self.folder / 'kubelet'}",
        ]
        self.processes.start(f"{self.name}-kubelet", command)

    def _start_kube_proxy(self, enter: list[str]) -> None:
        command = [
            *(*enter, str(self.programs["kube-proxy"]), "--proxy-mode=nftables"),
            f"--kubeconfig={self.pki.kubeconfig('kube-proxy')}",
            f"--hostname-override={self.name}",
            f"--cluster-cidr={self.home.addresses.all_pods}",
            f"--bind-address={self.address}",
            # Connection tracking's limits belong to the machine, not to a namespace.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ]
        self.processes.start(f"{self.name}-kube-proxy", command)

    def load_image(self, archive: Path) -> None:
        """Imports an OCI or Docker archive, for pods with `imagePullPolicy: Never`."""
        ctr = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io"]
        seconds = IMPORT_SECONDS + archive.stat().st_size / SLOW_IMPORT_BYTES_PER_SECOND
        run([*ctr, "images", "import", str(archive)], seconds=seconds)

    def _containerd_answers(self) -> bool:
        try:
            run(["ctr", "--address", str(self.socket), "version"], seconds=10)
        except CommandFailed:
            return False
        return True

    def _write_network_config(self) -> None:
        # A pod's cable is routed, not bridged: then a Service's answer from a pod on the same node
        # passes the node's rules without the kernel's bridge filter.
        ranges = [[{"subnet": self.home.addresses.pods(self.number)}]]
        cable = {
            "type": "ptp",
            "ipMasq": False,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.folder / "cni" / "leases"),
                "ranges": ranges,
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        config = {"cniVersion": "1.0.0", "name": "test", "plugins": [cable, ports]}
        folder = self.folder / "cni" / "config"
        folder.mkdir()
        (folder / "10-test.conflist").write_text(json.dumps(config))

    def _containerd_config(self) -> str:
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        runtime = f"{cri}.containerd.runtimes.runc"
        return f"""\
version = 2
root = "{self.folder / "containerd"}"
state = "{self.socket.parent / "state"}"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{self.socket}"
[{cri}]
  sandbox_image = "{images.PAUSE}"
  # Inside a container neither may be raised.
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  stream_server_address = "127.0.0.1"
  netns_mounts_under_state_dir = true
[{cri}.cni]
  bin_dir = "{host.cni_folder()}"
  conf_dir = "{self.folder / "cni" / "config"}"
[{runtime}]
  runtime_type = "io.containerd.runc.v2"
[{runtime}.options]
  SystemdCgroup = false
  Root = "{self.socket.parent / "runc"}"
"""

    def _kubelet_config(self, cgroup: str) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.pki.crt("ca"))},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(self.pki.crt(self.name)),
            "tlsPrivateKeyFile": str(self.pki.key(self.name)),
            "clusterDomain": "cluster.local",
            "clusterDNS": [self.home.addresses.dns_service],
            "resolvConf": str(self.folder / "resolv.conf"),
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{cgroup}",
            "failCgroupV1": False,
            "failSwapOn": False,
            # Lets the kubelet start where it may not set the machine's sysctls.
            "featureGates": {"KubeletInUserNamespace": True},
            "podLogsDir": str(self.folder / "pod-logs"),
            "volumePluginDir": str(self.folder / "kubelet" / "volume-plugins"),
            # Images are not to be had again, and a full disk is the machine's own affair.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "100Mi"},
            "nodeStatusUpdateFrequency": "4s",
        }
