package api

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/containerd/errdefs"
)

// TLSConfig describes a TCP address on which only clients are served that show
// a certificate: who reaches the API is root on this machine.
type TLSConfig struct {
	// Address is host:port.
	Address string
	// CA is a PEM file with the authorities that sign the clients' certificates.
	CA string
	// Cert and Key are PEM files with the server's own certificate.
	Cert, Key string
	// CommonName, if set, is that of the only client that is let in.
	CommonName string
}

// ListenTLS listens on a TCP address with mutual TLS. Without CA, Cert and Key
// it is an InvalidArgument.
func ListenTLS(cfg TLSConfig) (net.Listener, error) {
	conf, err := cfg.load()
	if err != nil {
		return nil, fmt.Errorf("listen on tcp %s: %w", cfg.Address, err)
	}
	l, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return nil, err // it names the address
	}
	return tls.NewListener(l, conf), nil
}

func (cfg TLSConfig) load() (*tls.Config, error) {
	if cfg.CA == "" || cfg.Cert == "" || cfg.Key == "" {
		return nil, fmt.Errorf("needs a CA, a certificate and a key, for clients are served with certificates only: %w", errdefs.ErrInvalidArgument)
	}
	pem, err := os.ReadFile(cfg.CA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate in PEM: %w", cfg.CA, errdefs.ErrInvalidArgument)
	}
	cert, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", cfg.Cert, cfg.Key, err)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{cert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
		NextProtos:   []string{"h2"}, // without it gRPC's clients refuse
		VerifyConnection: func(s tls.ConnectionState) error {
			if cfg.CommonName != "" && s.PeerCertificates[0].Subject.CommonName != cfg.CommonName {
				return errors.New("the client's certificate has another common name")
			}
			return nil
		},
	}, nil
}
