// Command deviceplugin offers the GPUs of an NVML double's control file to a kubelet as nvidia.com/gpu, through the same
// v1beta1 API as the vendor's plugin. With -serve-kubelet it plays the kubelet's side as well, for tests that have none.
package main

import (
	"context"
	"flag"
	"log"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	var options options
	flag.StringVar(&options.control, "control", "", "control file of the NVML double: which GPUs there are")
	flag.StringVar(&options.resource, "resource", "nvidia.com/gpu", "extended resource to offer them as")
	flag.StringVar(&options.folder, "plugins", "/var/lib/kubelet/device-plugins", "folder of the kubelet's plugin sockets")
	flag.IntVar(&options.replicas, "replicas", 1, "times each GPU is offered: more than 1 shares it in time")
	flag.DurationVar(&options.every, "every", 200*time.Millisecond, "pause between looks at the control file and the kubelet's socket")
	kubelet := flag.String("serve-kubelet", "", "file with pods to play a kubelet for, instead of offering GPUs to one")
	socket := flag.String("pod-resources", "/var/lib/kubelet/pod-resources/kubelet.sock", "with -serve-kubelet: socket of the pod-resources API")
	flag.Parse()
	log.SetFlags(log.Ltime | log.Lmicroseconds)

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var err error
	if *kubelet != "" {
		err = serveKubelet(ctx, *kubelet, *socket, options.folder)
	} else {
		err = run(ctx, options)
	}
	if err != nil {
		log.Fatal(err)
	}
}
