import pytest

from tailorbird.measure.conditions import (
    free_memory_mb,
    governor,
    processor,
    temperature_c,
    this_machine,
    usable_cores,
)


@pytest.fixture
def write(tmp_path):
    def one(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return one


def test_what_the_system_tells_is_read(tmp_path, write):
    write("proc/cpuinfo", "processor\t: 0\nmodel name\t: Fast One 3000\n")
    write("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    2000000 kB\n")
    write("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    write("sys/class/thermal/thermal_zone0/temp", "41000\n")
    write("sys/class/hwmon/hwmon1/temp2_input", "55500\n")
    found = this_machine("ONNX Runtime", "1.0", root=tmp_path)
    assert (found.machine, found.memory_mb) == ("Fast One 3000", 2048.0)
    assert (found.governor, found.temperature_c) == ("powersave", 55.5)
    assert (found.runtime, found.version) == ("ONNX Runtime", "1.0")
    assert found.cores == usable_cores() >= 1
    assert found.system


def test_governors_that_differ_are_all_named(tmp_path, write):
    for core, name in enumerate(("schedutil", "performance", "schedutil")):
        write(f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor", name)
    assert governor(root=tmp_path) == "performance, schedutil"


def test_what_can_not_be_read_is_none(tmp_path):
    assert free_memory_mb(root=tmp_path) is None
    assert governor(root=tmp_path) is None
    assert temperature_c(root=tmp_path) is None
    assert processor(root=tmp_path)


def test_sensors_that_are_off_do_not_count(tmp_path, write):
    write("sys/class/thermal/thermal_zone0/temp", "-274000\n")
    write("sys/class/thermal/thermal_zone1/temp", "not now\n")
    write("sys/class/thermal/thermal_zone2/temp", "")
    write("sys/class/hwmon/hwmon0/temp1_input", "255000\n")
    assert temperature_c(root=tmp_path) is None
    write("sys/class/hwmon/hwmon0/temp2_input", "33000\n")
    assert temperature_c(root=tmp_path) == 33.0
    write("proc/meminfo", "MemAvailable: much\n")
    assert free_memory_mb(root=tmp_path) is None
