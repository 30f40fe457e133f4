// A Go server that can be reloaded: SO_REUSEPORT by net.ListenConfig, and SIGTERM means "finish first".
package main

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"sync"
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

// The connections that are accepted, and of whose request nothing is read yet: Shutdown() closes those that are older
// than five seconds, and a busy server has such.
type unread struct {
	sync.WaitGroup
	connections sync.Map
}

func (u *unread) changed(connection net.Conn, state http.ConnState) {
	if state == http.StateNew {
		u.Add(1)
		u.connections.Store(connection, nil)
	} else if _, first := u.connections.LoadAndDelete(connection); first {
		u.Done()
	}
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
	var unread unread
	server := &http.Server{
		Handler: http.HandlerFunc(answer), ConnState: unread.changed, ReadHeaderTimeout: time.Minute,
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	go func() {
		<-asked
		listener.Close()
	}()
	if err := server.Serve(listener); !errors.Is(err, net.ErrClosed) {
		log.Fatal(err)
	}
	unread.Wait()
	server.Shutdown(context.Background())
}
