package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	resources "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// pod is one entry of the file the double plays a kubelet for: a JSON list.
type pod struct {
	Namespace  string      `json:"namespace"`
	Name       string      `json:"name"`
	Containers []container `json:"containers"`
}

type container struct {
	Name     string         `json:"name"`
	Requests map[string]int `json:"requests,omitempty"`
}

// granted is what a pod got, or why it was refused in the words of the kubelet's device manager.
type granted struct {
	Pod     string              `json:"pod"`
	Devices map[string][]string `json:"devices,omitempty"` // by resource
	Env     map[string]string   `json:"env,omitempty"`
	Refused string              `json:"refused,omitempty"`
}

// node plays the device manager of a kubelet: plugins register, pods of a file get devices, pod-resources tells.
type node struct {
	api.UnimplementedRegistrationServer
	resources.UnimplementedPodResourcesListerServer

	folder  string
	mutex   sync.Mutex
	healthy map[string][]string               // resource -> device ids
	plugins map[string]api.DevicePluginClient // by resource
	pods    []pod
	held    map[string]granted // by namespace/name/container
}

func serveKubelet(ctx context.Context, file, socket, folder string) error {
	n := &node{folder: folder, healthy: map[string][]string{}, plugins: map[string]api.DevicePluginClient{}, held: map[string]granted{}}
	registry, err := listen(filepath.Join(folder, "kubelet.sock"), func(server *grpc.Server) { api.RegisterRegistrationServer(server, n) })
	if err != nil {
		return err
	}
	defer registry.Stop()
	lister, err := listen(socket, func(server *grpc.Server) { resources.RegisterPodResourcesListerServer(server, n) })
	if err != nil {
		return err
	}
	defer lister.Stop()
	log.Printf("kubelet double listens on %s", socket)
	for ; ctx.Err() == nil; wait(ctx, 50*time.Millisecond) {
		if err := n.admit(ctx, file); err != nil {
			log.Printf("pods not read: %v", err)
		}
	}
	return nil
}

func listen(path string, register func(*grpc.Server)) (*grpc.Server, error) {
	_ = os.Remove(path)
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer()
	register(server)
	go func() { _ = server.Serve(listener) }()
	return server, nil
}

func (n *node) Register(_ context.Context, request *api.RegisterRequest) (*api.Empty, error) {
	if request.Version != api.Version {
		return nil, fmt.Errorf("version %s is not supported", request.Version)
	}
	target := "unix://" + filepath.Join(n.folder, request.Endpoint)
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	client := api.NewDevicePluginClient(connection)
	go n.watch(request.ResourceName, client, connection)
	return &api.Empty{}, nil
}

// watch follows what a plugin offers; nothing is offered once the plugin is gone.
func (n *node) watch(resource string, client api.DevicePluginClient, connection *grpc.ClientConn) {
	defer connection.Close()
	stream, err := client.ListAndWatch(context.Background(), &api.Empty{})
	for err == nil {
		var told *api.ListAndWatchResponse
		if told, err = stream.Recv(); err == nil {
			var ids []string
			for _, device := range told.Devices {
				if device.Health == api.Healthy {
					ids = append(ids, device.ID)
				}
			}
			n.mutex.Lock()
			n.healthy[resource], n.plugins[resource] = ids, client
			n.mutex.Unlock()
		}
	}
	n.mutex.Lock()
	if n.plugins[resource] == client {
		n.healthy[resource], n.plugins[resource] = nil, nil
	}
	n.mutex.Unlock()
}

// admit gives devices to pods that are new in the file and takes them from those that are gone; beside the file it writes
// what each got.
func (n *node) admit(ctx context.Context, file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var pods []pod
	if err := json.Unmarshal(content, &pods); err != nil {
		return err
	}
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.pods = pods
	wanted := map[string]bool{}
	news := false
	for _, one := range pods {
		for _, container := range one.Containers {
			key := one.Namespace + "/" + one.Name + "/" + container.Name
			wanted[key] = true
			if _, known := n.held[key]; !known && n.ready(container) {
				n.held[key] = n.grant(ctx, one.Namespace+"/"+one.Name, container)
				news = true
			}
		}
	}
	for key := range n.held {
		if !wanted[key] {
			delete(n.held, key)
			news = true
		}
	}
	if !news {
		return nil
	}
	told, err := json.Marshal(n.held)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".granted.new", told, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".granted.new", file+".granted")
}

func (n *node) ready(container container) bool {
	for resource := range container.Requests {
		if n.plugins[resource] == nil {
			return false
		}
	}
	return true
}

func (n *node) grant(ctx context.Context, name string, container container) granted {
	result := granted{Pod: name, Devices: map[string][]string{}, Env: map[string]string{}}
	for resource, count := range container.Requests {
		free := n.free(resource)
		if len(free) < count {
			result.Refused = fmt.Sprintf("Allocate failed due to requested number of devices unavailable for %s. Requested: %d, Available: %d, which is unexpected", resource, count, len(free))
			return result
		}
		plugin := n.plugins[resource]
		preferred, err := plugin.GetPreferredAllocation(ctx, &api.PreferredAllocationRequest{ContainerRequests: []*api.ContainerPreferredAllocationRequest{
			{AvailableDeviceIDs: free, AllocationSize: int32(count)},
		}})
		ids := free[:count]
		if err == nil && len(preferred.ContainerResponses) == 1 && len(preferred.ContainerResponses[0].DeviceIDs) == count {
			ids = preferred.ContainerResponses[0].DeviceIDs
		}
		response, err := plugin.Allocate(ctx, &api.AllocateRequest{ContainerRequests: []*api.ContainerAllocateRequest{{DevicesIds: ids}}})
		if err != nil {
			result.Refused = fmt.Sprintf("Allocate failed due to %v, which is unexpected", err)
			return result
		}
		result.Devices[resource] = ids
		for key, value := range response.ContainerResponses[0].Envs {
			result.Env[key] = value
		}
	}
	return result
}

func (n *node) free(resource string) []string {
	taken := map[string]bool{}
	for _, one := range n.held {
		for _, id := range one.Devices[resource] {
			taken[id] = true
		}
	}
	var free []string
	for _, id := range n.healthy[resource] {
		if !taken[id] {
			free = append(free, id)
		}
	}
	sort.Strings(free)
	return free
}

// List tells each device in a message of its own, as the kubelet does.
func (n *node) List(context.Context, *resources.ListPodResourcesRequest) (*resources.ListPodResourcesResponse, error) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	response := &resources.ListPodResourcesResponse{}
	for _, one := range n.pods {
		told := &resources.PodResources{Name: one.Name, Namespace: one.Namespace}
		for _, container := range one.Containers {
			entry := &resources.ContainerResources{Name: container.Name, CpuIds: []int64{0, 300}}
			entry.Memory = []*resources.ContainerMemory{{MemoryType: "memory", Size: 1 << 33}}
			for resource, ids := range n.held[one.Namespace+"/"+one.Name+"/"+container.Name].Devices {
				entry.Devices = append(entry.Devices, containerDevices(resource, ids)...)
			}
			told.Containers = append(told.Containers, entry)
		}
		response.PodResources = append(response.PodResources, told)
	}
	return response, nil
}

func (n *node) GetAllocatableResources(context.Context, *resources.AllocatableResourcesRequest) (*resources.AllocatableResourcesResponse, error) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	response := &resources.AllocatableResourcesResponse{CpuIds: []int64{0, 1}}
	for resource, ids := range n.healthy {
		response.Devices = append(response.Devices, containerDevices(resource, ids)...)
	}
	return response, nil
}

func containerDevices(resource string, ids []string) []*resources.ContainerDevices {
	var all []*resources.ContainerDevices
	for _, id := range ids {
		topology := &resources.TopologyInfo{Nodes: []*resources.NUMANode{{ID: 1}}}
		all = append(all, &resources.ContainerDevices{ResourceName: resource, DeviceIds: []string{id}, Topology: topology})
	}
	return all
}
