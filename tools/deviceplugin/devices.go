package main

import (
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"

	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// devices reads the GPUs of a control file (tests/nvml_double/README.md). A line "gpu.N.plugin=Unhealthy" makes one
// unhealthy; so does "error.*@UUID=15", by which the NVML double makes the driver lose it.
func devices(path string, replicas int) ([]*api.Device, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	uuids, unhealthy := map[int]string{}, map[string]bool{}
	byIndex := map[int]bool{}
	for _, line := range strings.Split(string(content), "\n") {
		key, value, found := strings.Cut(strings.TrimSpace(line), "=")
		if !found || strings.HasPrefix(key, "#") {
			continue
		}
		parts := strings.Split(key, ".")
		if lost, ok := strings.CutPrefix(key, "error.*@"); ok {
			unhealthy[lost] = true
		}
		if len(parts) != 3 || parts[0] != "gpu" {
			continue
		}
		index, err := strconv.Atoi(parts[1])
		if err != nil {
			continue
		}
		switch parts[2] {
		case "uuid":
			uuids[index] = value
		case "plugin":
			byIndex[index] = value == api.Unhealthy
		}
	}
	indices := make([]int, 0, len(uuids))
	for index := range uuids {
		indices = append(indices, index)
	}
	sort.Ints(indices)
	var found []*api.Device
	for _, index := range indices {
		health := api.Healthy
		if byIndex[index] || unhealthy[uuids[index]] {
			health = api.Unhealthy
		}
		for _, id := range ids(uuids[index], replicas) {
			found = append(found, &api.Device{ID: id, Health: health})
		}
	}
	return found, nil
}

// ids names the shares of a GPU as the vendor's plugin does: the UUID alone where it is not shared.
func ids(uuid string, replicas int) []string {
	if replicas < 2 {
		return []string{uuid}
	}
	var all []string
	for replica := range replicas {
		all = append(all, fmt.Sprintf("%s::%d", uuid, replica))
	}
	return all
}

// uuidOf is the inverse of ids.
func uuidOf(id string) string {
	uuid, _, _ := strings.Cut(id, "::")
	return uuid
}

func same(one, other []*api.Device) bool {
	if len(one) != len(other) {
		return false
	}
	for i := range one {
		if one[i].ID != other[i].ID || one[i].Health != other[i].Health {
			return false
		}
	}
	return true
}
