"""The machines `Cluster.preset` knows, from their data sheets, and the guesses for a laptop."""

from superscaler.planner.cluster import Cluster, Link, Nodes
from superscaler.planner.device import FLOAT8, FLOPS_CLASSES, GIB, Device
from superscaler.planner.efficiency import A100, GAMING, H100, H100_500W, PROCESSOR, V100, Efficiency
from superscaler.planner.transport import GLOO, NCCL

# per hop, NCCL's protocol for large messages (see `transport`)
NVLINK_LATENCY, PCIE_LATENCY, NETWORK_LATENCY = 3.4e-6, 5.7e-6, 1.4e-5
# What large all-reduces reach: 235 GB/s of NVLink's 300 on A100 (the cap in NCCL's src/graph/tuning.cc)
NVLINK_EFFICIENCY, PCIE_EFFICIENCY, NETWORK_EFFICIENCY = 0.8, 0.75, 0.92


def local(num_devices: int) -> Cluster:
    """One machine of `num_devices` processes; the figures are guesses for a laptop's processor."""
    # float8 is computed by float32
    flops = (("float64", 2.5e10), ("float32", 5e10), ("half", 5e10), (FLOAT8, 5e10))
    device = Device("cpu", 8 * GIB, flops, 1e10, 5e9, PROCESSOR)
    nodes = Nodes(1, num_devices, device, Link(2e9, 5e-5), Link(1e9, 1e-4), num_devices)
    return Cluster("local", (nodes,), GLOO)


def _device(
    name: str,
    memory_bytes: int,
    teraflops: tuple[float, ...],
    memory_gigabytes_per_second: float,
    pcie_gigabytes_per_second: float,
    efficiency: Efficiency,
) -> Device:
    """A device; dense teraflops in float64, float32, half, and in float8 where it has that."""
    classes = (*FLOPS_CLASSES, FLOAT8)[: len(teraflops)]
    flops = tuple((kind, 1e12 * speed) for kind, speed in zip(classes, teraflops, strict=True))
    memory, pcie = 1e9 * memory_gigabytes_per_second, 1e9 * pcie_gigabytes_per_second
    return Device(name, memory_bytes, flops, memory, pcie, efficiency)


# Peak dense figures of NVIDIA's data sheets; of PCIe 3.0, 4.0 and 5.0 x16, what copies reach (12, 25, 50 GB/s).
V100_32GB = _device("V100-32GB", 32 * GIB, (7.8, 15.7, 125.0), 900, 12, V100)
A100_80GB = _device("A100-80GB", 80 * GIB, (9.7, 19.5, 312.0), 2039, 25, A100)
H100_80GB = _device("H100-80GB", 80 * GIB, (34.0, 67.0, 989.5, 1979.0), 3350, 50, H100)
# torchtitan's platform: 96 GB HBM2e and 500 W; the arithmetic is that of SXM, which the power does not sustain
H100_96GB = _device("H100-96GB-500W", 96 * 10**9, (34.0, 67.0, 989.5, 1979.0), 2400, 50, H100_500W)
H200_141GB = _device("H200-141GB", 141 * 10**9, (34.0, 67.0, 989.5, 1979.0), 4800, 50, H100)
# RTX 4090 and RTX A6000 data sheets (Ada and Ampere GA102 white papers): half and float8 with float32 accumulation
RTX_4090 = _device("RTX-4090", 24 * GIB, (1.29, 82.6, 165.2, 330.3), 1008, 25, GAMING)
RTX_A6000 = _device("RTX-A6000", 48 * GIB, (0.6, 38.7, 154.8), 768, 25, GAMING)


def _node(
    name: str,
    num_devices: int,
    device: Device,
    link_gigabytes_per_second: float,
    cards: int,
    card_gigabits_per_second: float,
    *,
    has_nvlink: bool = True,
) -> Cluster:
    """One node: what a device sends to the others of it, its network cards, and what each of those sends."""
    way = (NVLINK_LATENCY, NVLINK_EFFICIENCY) if has_nvlink else (PCIE_LATENCY, PCIE_EFFICIENCY)
    link = Link(1e9 * link_gigabytes_per_second, *way)
    network = Link(1e9 * card_gigabits_per_second / 8, NETWORK_LATENCY, NETWORK_EFFICIENCY)
    return Cluster(name, (Nodes(1, num_devices, device, link, network, cards),), NCCL)


# NVLink's total is halved for one direction.
PRESETS: dict[str, Cluster] = {
    cluster.name: cluster
    for cluster in (
        # DGX-1 data sheet: NVLink 300 GB/s; 4 x 100 Gb/s EDR InfiniBand
        _node("dgx-1-v100", 8, V100_32GB, 150.0, 4, 100.0),
        # SuperScaler (arXiv 2301.08984): 8 V100 of 32 GB with NVLink, "InfiniBand": one card of 100 Gb/s is assumed
        _node("superscaler-v100", 8, V100_32GB, 150.0, 1, 100.0),
        # DGX-2 data sheet: 16 V100 behind NVSwitch, 300 GB/s each; 8 x 100 Gb/s
        _node("dgx-2", 16, V100_32GB, 150.0, 8, 100.0),
        # DGX A100 data sheet: NVLink 600 GB/s; 8 x 200 Gb/s HDR
        _node("dgx-a100", 8, A100_80GB, 300.0, 8, 200.0),
        # DGX H100 data sheet: NVLink 900 GB/s; 8 x 400 Gb/s NDR
        _node("dgx-h100", 8, H100_80GB, 450.0, 8, 400.0),
        # torchtitan (arXiv 2410.06511) and its benchmarks: H100 with 96 GB HBM2e at 2.4 TB/s; 400 Gb/s per GPU
        _node("h100-96gb-500w", 8, H100_96GB, 450.0, 8, 400.0),
        # HGX H200: as H100 but for its memory
        _node("h200", 8, H200_141GB, 450.0, 8, 400.0),
        # workstations: PCIe 4.0 x16 is 32 GB/s, of which half where all goes through host memory, as the 4090 has no
        # access to its peers; one network card of 25 or 100 Gb/s
        _node("workstation-4090", 4, RTX_4090, 16.0, 1, 25.0, has_nvlink=False),
        _node("workstation-a6000", 4, RTX_A6000, 32.0, 1, 100.0, has_nvlink=False),
    )
}
