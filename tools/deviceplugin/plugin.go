package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

type options struct {
	control, resource, folder string
	replicas                  int
	every                     time.Duration
}

// plugin serves the device plugin API for the devices of a control file.
type plugin struct {
	api.UnimplementedDevicePluginServer
	options

	mutex   sync.Mutex
	current []*api.Device
	changed chan struct{} // closed at the next change
}

// run offers the devices until the context ends. A kubelet that restarts makes its socket anew: the plugin serves and
// registers again, as https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/ asks.
func run(ctx context.Context, options options) error {
	p := &plugin{options: options, changed: make(chan struct{})}
	if err := p.look(); err != nil {
		return err
	}
	var server *grpc.Server
	var registered os.FileInfo
	for ; ctx.Err() == nil; wait(ctx, p.every) {
		if err := p.look(); err != nil {
			log.Printf("control file not read: %v", err)
		}
		kubelet, err := os.Stat(filepath.Join(p.folder, "kubelet.sock"))
		if err != nil || (registered != nil && sameSocket(kubelet, registered) && p.listens()) {
			continue
		}
		if server != nil {
			server.Stop()
		}
		if server, err = p.serve(); err == nil {
			err = p.register(ctx)
		}
		if err != nil {
			log.Printf("not registered: %v", err)
			continue
		}
		registered = kubelet
		log.Printf("registered %s with %d devices", p.resource, len(p.snapshot()))
	}
	if server != nil {
		server.Stop()
	}
	return nil
}

func wait(ctx context.Context, pause time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
}

func (p *plugin) endpoint() string {
	return "llmos-" + strings.ReplaceAll(p.resource, "/", "_") + ".sock"
}

// sameSocket asks for the time, too: the number of a removed file is given to the next one.
func sameSocket(one, other os.FileInfo) bool {
	return os.SameFile(one, other) && one.ModTime().Equal(other.ModTime())
}

func (p *plugin) listens() bool {
	_, err := os.Stat(filepath.Join(p.folder, p.endpoint())) // a starting kubelet empties the folder
	return err == nil
}

func (p *plugin) serve() (*grpc.Server, error) {
	path := filepath.Join(p.folder, p.endpoint())
	_ = os.Remove(path)
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer()
	api.RegisterDevicePluginServer(server, p)
	go func() { _ = server.Serve(listener) }()
	return server, nil
}

func (p *plugin) register(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	target := "unix://" + filepath.Join(p.folder, "kubelet.sock")
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	_, err = api.NewRegistrationClient(connection).Register(ctx, &api.RegisterRequest{
		Version:      api.Version,
		Endpoint:     p.endpoint(),
		ResourceName: p.resource,
		Options:      &api.DevicePluginOptions{GetPreferredAllocationAvailable: true},
	})
	return err
}

// look reads the control file and wakes the streams if the devices are others now.
func (p *plugin) look() error {
	found, err := devices(p.control, p.replicas)
	if err != nil {
		return err
	}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if !same(found, p.current) {
		p.current = found
		close(p.changed)
		p.changed = make(chan struct{})
	}
	return nil
}

func (p *plugin) snapshot() []*api.Device {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return p.current
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{GetPreferredAllocationAvailable: true}, nil
}

func (p *plugin) ListAndWatch(_ *api.Empty, stream grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	for {
		p.mutex.Lock()
		current, changed := p.current, p.changed
		p.mutex.Unlock()
		if err := stream.Send(&api.ListAndWatchResponse{Devices: current}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// GetPreferredAllocation prefers the highest UUIDs: the opposite of what a scheduler that counts from 0 would guess, so
// that tests notice who relies on a guess.
func (p *plugin) GetPreferredAllocation(_ context.Context, request *api.PreferredAllocationRequest) (*api.PreferredAllocationResponse, error) {
	response := &api.PreferredAllocationResponse{}
	for _, container := range request.ContainerRequests {
		available := append([]string(nil), container.AvailableDeviceIDs...)
		sort.Sort(sort.Reverse(sort.StringSlice(available)))
		chosen := append([]string(nil), container.MustIncludeDeviceIDs...)
		for _, id := range available {
			if len(chosen) >= int(container.AllocationSize) {
				break
			}
			if !contains(chosen, id) {
				chosen = append(chosen, id)
			}
		}
		response.ContainerResponses = append(response.ContainerResponses, &api.ContainerPreferredAllocationResponse{DeviceIDs: chosen})
	}
	return response, nil
}

func (p *plugin) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	healthy := map[string]bool{}
	for _, device := range p.snapshot() {
		healthy[device.ID] = device.Health == api.Healthy
	}
	response := &api.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		var uuids []string
		for _, id := range container.DevicesIds {
			if !healthy[id] {
				return nil, fmt.Errorf("device %s is unhealthy or unknown", id)
			}
			if uuid := uuidOf(id); !contains(uuids, uuid) {
				uuids = append(uuids, uuid)
			}
		}
		response.ContainerResponses = append(response.ContainerResponses, &api.ContainerAllocateResponse{
			Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(uuids, ",")},
		})
	}
	return response, nil
}

func (p *plugin) PreStartContainer(context.Context, *api.PreStartContainerRequest) (*api.PreStartContainerResponse, error) {
	return &api.PreStartContainerResponse{}, nil
}

func contains(all []string, one string) bool {
	for _, other := range all {
		if other == one {
			return true
		}
	}
	return false
}
