package api_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/internal/api"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.sign(name, true)
	return a
}

// sign makes name.pem and name.key in the directory.
func (a *authority) sign(name string, ca bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for ext, block := range map[string]*pem.Block{
		".pem": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: secret},
	} {
		if err := os.WriteFile(a.file(name+ext), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// client are the credentials of a client, with no certificate if name is "".
func (a *authority) client(server *authority, name string) credentials.TransportCredentials {
	a.t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(server.cert)
	conf := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	if name != "" {
		cert, err := tls.LoadX509KeyPair(a.file(name+".pem"), a.file(name+".key"))
		if err != nil {
			a.t.Fatal(err)
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return credentials.NewTLS(conf)
}

func TestMutualTLS(t *testing.T) {
	b := newServerBench(t)
	ours, theirs := newAuthority(t, "ca"), newAuthority(t, "ca")
	ours.sign("server", false)
	ours.sign("good", false)
	ours.sign("other", false)
	theirs.sign("good", false)
	cfg := api.TLSConfig{
		Address: "127.0.0.1:0", CA: ours.file("ca.pem"), Cert: ours.file("server.pem"), Key: ours.file("server.key"), CommonName: "good",
	}
	l, err := api.ListenTLS(cfg)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.server.Serve(l) }()
	t.Cleanup(func() {
		b.server.Stop(context.Background())
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	for _, tt := range []struct {
		name  string
		creds credentials.TransportCredentials
		in    bool
	}{
		{"the client's certificate", ours.client(ours, "good"), true},
		{"another name", ours.client(ours, "other"), false},
		{"another authority", theirs.client(ours, "good"), false},
		{"no certificate", ours.client(ours, ""), false},
		{"no TLS", insecure.NewCredentials(), false},
	} {
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(tt.creds))
		if err != nil {
			t.Fatal(err)
		}
		_, err = versionapi.NewVersionClient(conn).Version(b.ctx(t), &emptypb.Empty{})
		if (err == nil) != tt.in {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []api.TLSConfig{
		{Address: cfg.Address},
		{Address: cfg.Address, Cert: cfg.Cert, Key: cfg.Key},
		{Address: cfg.Address, CA: cfg.Key, Cert: cfg.Cert, Key: cfg.Key},
	} {
		if _, err := api.ListenTLS(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v, want InvalidArgument", bad, err)
		}
	}
}
