// A Go server that can be reloaded: SO_REUSEPORT by net.ListenConfig, and SIGTERM means "finish first".
package main

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

const soReuseport = 15 // not in package syscall on every architecture

func reuseport(_, _ string, conn syscall.RawConn) (err error) {
	failed := conn.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, soReuseport, 1)
	})
	if failed != nil {
		return failed
	}
	return err
}

// Busy on the one processor, so that connections queue.
func answer(writer http.ResponseWriter, _ *http.Request) {
	for start := time.Now(); time.Since(start) < 2*time.Millisecond; {
	}
	io.WriteString(writer, "ok\n")
}

func main() {
	runtime.GOMAXPROCS(1)
	config := net.ListenConfig{Control: reuseport}
	listener, err := config.Listen(context.Background(), "tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(answer)}
	asked, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(asked, syscall.SIGTERM)
	go func() {
		<-asked
		server.Shutdown(context.Background())
		close(done)
	}()
	if err := server.Serve(listener); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	<-done
}
